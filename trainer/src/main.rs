//! The reference trainer of hardmix.
fn main() {}
