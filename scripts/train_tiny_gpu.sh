#!/usr/bin/env bash
# The whole recipe of the embedded model on one machine: speech is synthesised, every stage trained, the result
# evaluated and written to one folder in files of at most 15 MB. Sized for 25 minutes on one large GPU and 16
# cores (by its time limits; it has been run in small and on CPUs only so far). `--small` is a miniature for two
# cores. No network is used. Called again, it goes on where it was.
#
#   scripts/train_tiny_gpu.sh --sentences data/text --real data/speech --work work --out out
#   scripts/train_tiny_gpu.sh --small --sentences data/text --work work-small --out out
#   scripts/train_tiny_gpu.sh --join out --into somewhere          # unpacks somewhere/checkpoint
#
# What the machine lacks can be carried to it:
#
#   --wheels FOLDER     Python wheels, installed beside the machine's own packages. Where there is a network:
#                       pip download --no-deps --only-binary=:all: --python-version 3.12 \
#                           --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels \
#                           jiwer rapidfuzz soundfile cffi pycparser soxr pypinyin \
#                           whisper-normalizer indic-numtowords text2num more-itertools
#   --debs FOLDER       Debian packages of the synthesisers: libespeak-ng1 espeak-ng-data libsonic0 and, for
#                       voices made from recordings too, libflite1 libasound2, festival and its voices.
#                       Without flite and festival, both, espeak-ng speaks alone.
#   --debs-root FOLDER  where those are unpacked (default: <work>/root). festival is found under / only.
#
# Where a command may run for some minutes only:
#
#   --wait MINUTES      start the run detached and come back after so many minutes at the latest, with what
#                       there is so far in --out: code 75 means that it goes on; make the same call again.
#
# All other options go to `python -m canvas_asr.training.pipeline` (--help lists them).
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels='' debs='' debs_root='' wait_minutes='' work='' out='' passed=()

fail() {
    echo "error: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --wheels | --debs | --debs-root | --wait | --work | --out)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --wheels) wheels=$2 ;;
                --debs) debs=$2 ;;
                --debs-root) debs_root=$2 ;;
                --wait) wait_minutes=$2 ;;
                --work) work=$2 ;;
                --out) out=$2 ;;
            esac
            shift 2
            ;;
        *)
            passed+=("$1")
            shift
            ;;
    esac
done

export PYTHONPATH="$repository/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error

case " ${passed[*]-} " in
    *' --join '* | *' --help '* | *' -h '*)
        exec "$python" -m canvas_asr.training.pipeline "${passed[@]}"
        ;;
esac

[ -n "$work" ] || fail "--work is missing: a folder for everything made on the way"
[ -n "$out" ] || fail "--out is missing: a folder for the results"
mkdir -p "$work" "$out"
work=$(cd "$work" && pwd)
out=$(cd "$out" && pwd)
case " ${passed[*]-} " in
    *' --recipes '*) ;;
    *) passed+=(--recipes "$repository/recipes/tiny") ;;
esac

if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || fail "--wheels $wheels: no such folder"
    if [ ! -e "$work/site/.installed" ]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$work/site" "$wheels"/*.whl
        touch "$work/site/.installed"
    fi
    PYTHONPATH="$work/site:$PYTHONPATH"
fi

if [ -n "$debs" ]; then
    [ -d "$debs" ] || fail "--debs $debs: no such folder"
    root=${debs_root:-$work/root}
    mkdir -p "$root"
    root=$(cd "$root" && pwd)
    if [ ! -e "$work/.debs-unpacked" ]; then
        for package in "$debs"/*.deb; do dpkg -x "$package" "$root"; done
        if [ "$root" = / ]; then ldconfig; fi
        touch "$work/.debs-unpacked"
    fi
    if [ "$root" != / ]; then
        libraries=$(find "$root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
        export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        phontab=$(find "$root" -path '*/lib/*/espeak-ng-data/phontab' -print -quit)
        if [ -n "$phontab" ]; then export ESPEAK_DATA_PATH=${phontab%/phontab}; fi
    fi
fi

# espeak-ng's library is linked to one that plays sound and needs an audio server's many libraries. Nothing is
# played here: where that one is missing, a silent one will do.
if [ -n "$debs" ] && ! "$python" -c 'import ctypes; ctypes.CDLL("libpcaudio.so.0")' 2>/dev/null; then
    mkdir -p "$work/silent"
    for name in create_audio_device_object audio_object_{open,close,destroy,drain,flush,write,strerror}; do
        echo "void *$name(void) { return 0; }"
    done | cc -shared -fPIC -x c -o "$work/silent/libpcaudio.so.0" - ||
        fail "no libpcaudio.so.0 here and no C compiler to make a silent one: add libpcaudio0 and what it needs"
    export LD_LIBRARY_PATH="$work/silent${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

if [ -z "$wait_minutes" ]; then
    exec "$python" -m canvas_asr.training.pipeline --work "$work" --out "$out" "${passed[@]}"
fi

is_running() {
    [ -e "$work/pid" ] && kill -0 "$(cat "$work/pid")" 2>/dev/null && [ ! -e "$work/exit_code" ]
}

if ! is_running; then
    rm -f "$work/exit_code"
    # shellcheck disable=SC2016  # the inner shell expands these
    setsid bash -c '"$@" && code=0 || code=$?; echo $code >"$0/exit_code"' "$work" \
        "$python" -m canvas_asr.training.pipeline --work "$work" --out "$work/out" "${passed[@]}" \
        >>"$work/pipeline.log" 2>&1 </dev/null &
    echo $! >"$work/pid"
fi
end=$((SECONDS + $(awk -v m="$wait_minutes" 'BEGIN { print int(60 * m) }')))
while is_running && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
if [ -d "$work/out" ]; then cp -f "$work"/out/* "$out"/; fi
tail -n 40 "$work/pipeline.log"
if is_running; then
    echo "still running; make the same call again." >&2
    exit 75
fi
[ -e "$work/exit_code" ] || fail "the run was killed; see $work/pipeline.log, then make the same call again"
exit "$(cat "$work/exit_code")"
