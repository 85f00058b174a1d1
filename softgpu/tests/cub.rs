//! CUB's block and warp primitives, compiled from the toolkit's own headers: code that nobody here
//! wrote gives what its documentation says.

mod common;

use common::{Gpu, Random, flat};

const THREADS: usize = 128;
const ITEMS: usize = 4;
const LEN: usize = THREADS * ITEMS;

/// One block of `kernel` over `input`, under every schedule.
fn run(gpu: &Gpu, kernel: &str, input: &[u32], len: usize) -> Vec<u32> {
    let input = gpu.upload(input);
    gpu.under_all_schedules(|| {
        let output = gpu.unwritten::<u32>(len);
        launch!(gpu, kernel, flat(1, THREADS as u32); &input, &output);
        gpu.download(&output)
    })
}

fn input() -> Vec<u32> {
    Random::new(5).below(1000, LEN)
}

#[test]
fn block_reduce() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let eighths: u32 = input.iter().step_by(ITEMS).sum::<u32>() / 128;
    let largest = *input.iter().max().unwrap();
    assert_eq!(
        run(&gpu, "block_reduce", &input, 3),
        [input.iter().sum(), largest, eighths]
    );
}

#[test]
fn block_scan() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let exclusive = input.iter().scan(0, |sum, x| {
        *sum += x;
        Some(*sum - x)
    });
    let maxima = input.iter().scan(0, |top, x| {
        *top = (*top).max(*x);
        Some(*top)
    });
    let expected: Vec<u32> = exclusive.chain(maxima).collect();
    assert_eq!(run(&gpu, "block_scan", &input, 2 * LEN), expected);
}

#[test]
fn block_radix_sort() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = Random::new(6)
        .words(LEN)
        .iter()
        .map(|x| x & !0xF0)
        .collect::<Vec<_>>();
    let mut places: Vec<u32> = (0..LEN as u32).collect();
    places.sort_by_key(|at| std::cmp::Reverse(input[*at as usize]));
    let keys = places.iter().map(|at| input[*at as usize]);
    let expected: Vec<u32> = keys.chain(places.iter().copied()).collect();
    assert_eq!(run(&gpu, "block_radix_sort", &input, 2 * LEN), expected);
}

#[test]
fn block_radix_rank() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let mut places: Vec<usize> = (0..LEN).collect();
    // Keys are warp-striped: a warp's first items come before its second ones.
    let order = |at: usize| (at / (32 * ITEMS), at % ITEMS, at / ITEMS % 32);
    places.sort_by_key(|at| (input[*at] % 32, order(*at)));
    let mut ranks = vec![0; LEN];
    for (rank, at) in places.iter().enumerate() {
        ranks[*at] = rank as u32;
    }
    assert_eq!(run(&gpu, "block_radix_rank", &input, LEN), ranks);
}

#[test]
fn block_merge_sort() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let mut input = input();
    let found = run(&gpu, "block_merge_sort", &input, LEN);
    input.sort_unstable();
    assert_eq!(found, input);
}

#[test]
fn block_load_and_store() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let expected: Vec<u32> = input
        .iter()
        .enumerate()
        .map(|(i, x)| x * 5 + (i % ITEMS) as u32)
        .collect();
    assert_eq!(run(&gpu, "block_load_store", &input, LEN), expected);
}

#[test]
fn block_exchange() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let striped = |at: usize| input[at % ITEMS * THREADS + at / ITEMS];
    let expected: Vec<u32> = (0..LEN).map(striped).collect();
    assert_eq!(run(&gpu, "block_exchange", &input, LEN), expected);
}

#[test]
fn block_histogram() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let mut counts = [0; 32];
    for x in &input {
        counts[(x % 256 % 32) as usize] += 1;
    }
    assert_eq!(
        run(&gpu, "block_histogram", &input, 64),
        [counts, counts].concat()
    );
}

#[test]
fn block_discontinuity() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let head = |at: usize| u32::from(at == 0 || input[at] % 2 != input[at - 1] % 2);
    let expected: Vec<u32> = (0..LEN).map(head).collect();
    assert_eq!(run(&gpu, "block_discontinuity", &input, LEN), expected);
}

#[test]
fn block_adjacent_difference() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let left = |at: usize| {
        if at == 0 {
            input[0]
        } else {
            input[at].wrapping_sub(input[at - 1])
        }
    };
    let expected: Vec<u32> = (0..LEN).map(left).collect();
    assert_eq!(
        run(&gpu, "block_adjacent_difference", &input, LEN),
        expected
    );
}

#[test]
fn block_shuffle() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let expected: Vec<u32> = (0..THREADS).map(|at| input[(at + 37) % THREADS]).collect();
    assert_eq!(run(&gpu, "block_shuffle", &input, THREADS), expected);
}

#[test]
fn block_run_length_decode() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let repeat = |x: &u32| std::iter::repeat_n(*x, (x % 4 + 1) as usize);
    let expected: Vec<u32> = input[..THREADS].iter().flat_map(repeat).collect();
    assert_eq!(
        run(&gpu, "block_run_length_decode", &input, expected.len()),
        expected
    );
}

#[test]
fn warp_reduce() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let sums = |width: usize| input[..THREADS].chunks(width).map(|part| part.iter().sum());
    let expected: Vec<u32> = sums(32).chain(sums(8)).collect();
    assert_eq!(run(&gpu, "warp_reduce", &input, expected.len()), expected);
}

#[test]
fn warp_scan() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let sum = |at: usize| input[at / 32 * 32..=at].iter().sum();
    let ends = (31..THREADS).step_by(32);
    let expected: Vec<u32> = (0..THREADS).chain(ends).map(sum).collect();
    assert_eq!(run(&gpu, "warp_scan", &input, expected.len()), expected);
}

#[test]
fn warp_merge_sort() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let mut input = input();
    let found = run(&gpu, "warp_merge_sort", &input, LEN);
    input
        .chunks_mut(32 * ITEMS)
        .for_each(<[u32]>::sort_unstable);
    assert_eq!(found, input);
}

#[test]
fn warp_exchange() {
    let Some(gpu) = Gpu::load("cub") else { return };
    let input = input();
    let striped = |at: usize| {
        let (warp, within) = (at / (32 * ITEMS), at % (32 * ITEMS));
        input[warp * 32 * ITEMS + within % ITEMS * 32 + within / ITEMS]
    };
    let expected: Vec<u32> = (0..LEN).map(striped).collect();
    assert_eq!(run(&gpu, "warp_exchange", &input, LEN), expected);
}
