"""Many runs: sweeps, benchmarks, before and after, generated data."""
