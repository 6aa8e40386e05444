"""Many transcriptions with one model: jobs whose clips and chunks share passes."""
