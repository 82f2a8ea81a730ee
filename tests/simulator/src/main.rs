//! A thousand simulated sidecars in one process.
fn main() {}
