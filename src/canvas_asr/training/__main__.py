"""``python -m canvas_asr.training`` is ``canvas-asr train``, as a module that ``accelerate launch`` can run.

accelerate launch -m canvas_asr.training recipes/tiny/adapter.yaml --set training.max_steps=100
"""

import sys

if __name__ == "__main__":  # a worker process imports this file under another name
    from canvas_asr.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
