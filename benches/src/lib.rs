//! Criterion benchmarks of lstar: see the `benches` folder. Figures are ratios of medians measured side by side in one run.
