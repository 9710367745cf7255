# Sourced: an experiment of seconds, on a model of random weights, for scripts that try what happens to runs. From the repository's root:
#     tiny_experiment FILE.yaml
tiny_experiment() {
    cat >"$1" <<YAML
models: {tiny: {path: $PWD/crates/generation/tests/data/models/tiny-sd15, family: sd15}}
methods: [direct-inf]
scales: [0.25]
images: 3
sampler: {steps: 2}
reference: {source: emoji, images: 6}
metrics: {protocol: scalecrafter, extractor: $PWD/crates/runner/tests/data/tiny-inception}
YAML
}
