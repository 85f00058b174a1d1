//! A step of plain MoCo against MoCHi with every setting of the paper.
//!
//! `cargo bench -p hardmix --bench step` is criterion's run, on the CPU. With `-- --json`, and of the
//! feature `cuda` with `-- --gpu`, all contestants are taken in turn, several times over: what is compared
//! then met the same weather. Both print a line of JSON a shape with every time, the first in
//! milliseconds, the second in microseconds of the GPU's clock.

#[path = "../common/mod.rs"]
mod common;
mod cpu;
#[cfg(feature = "cuda")]
mod gpu;

use criterion::Criterion;

const USAGE: &str = "cargo bench -p hardmix --bench step -- \
    [--json [--features random|real] [--shape K,B] [--only NAME]… [--rounds R] \
    | --gpu [--shape K,B,d]… [--dtype f32|f16|bf16]… [--only NAME]… [--rounds R] [--full] \
    | --write FILE]";

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("--json") => cpu::json_lines(arguments.skip(1)),
        #[cfg(feature = "cuda")]
        Some("--gpu") => gpu::json_lines(arguments.skip(1)).expect("a valid input"),
        Some("--write") => cpu::write(arguments.nth(1).as_deref().expect(USAGE)),
        _ => cpu::criterion(&mut Criterion::default().configure_from_args()),
    }
}
