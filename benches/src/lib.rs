//! Benchmarks of the gateway. Each file beside this folder answers one question; run one with
//! `cargo bench -p foregate-bench --bench match_pick`.
