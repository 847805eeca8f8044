//! Measurements, each with its baseline in the same run: see `README.md` and the programs in `benches/`.
