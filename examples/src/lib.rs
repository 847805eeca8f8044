//! Runnable examples of torchfs-core: `cargo run -p torchfs-examples --example embed`.
