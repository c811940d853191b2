"""What a user starts: one module per command of `stgs`, each with `run(config) -> Outcome` and `main(argv) -> int`."""
