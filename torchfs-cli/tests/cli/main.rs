//! The real `torchfs` binary against clusters in the test's process, and against none.

mod cluster;
mod files;
mod fixture;
mod sim;
mod trace;
