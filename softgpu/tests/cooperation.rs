//! How threads share work and memory, against Rust: warps, barriers, blocks, grids, atomics, and the
//! memories themselves.

mod common;

use common::{Gpu, Random, flat};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, sys};
use half::f16;

#[test]
fn vectors_add() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    for n in [1, 31, 1000, 5000] {
        let mut random = Random::new(n);
        let (a, b) = (random.floats(n as usize), random.floats(n as usize));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(x, y)| x + y).collect();
        let (a, b, count) = (gpu.upload(&a), gpu.upload(&b), n as u32);
        let found = gpu.under_schedules(n < 100, || {
            let sum = gpu.unwritten::<f32>(n as usize);
            launch!(gpu, "add", flat(4, 128); &a, &b, &sum, &count);
            gpu.download(&sum)
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn what_a_launch_moves_is_counted() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let (a, b, sum) = (
        gpu.zeros::<f32>(1000),
        gpu.zeros::<f32>(1000),
        gpu.unwritten::<f32>(1000),
    );
    launch!(gpu, "add", flat(4, 128); &a, &b, &sum, &1000u32);
    let Some(counters) = gpu.counters() else {
        return;
    };
    assert_eq!((counters.bytes_read, counters.bytes_written), (8000, 4000));
    assert_eq!((counters.tensor_operations, counters.shared_bytes), (0, 0));
    assert!(counters.instructions > 0);
}

#[test]
fn vectors_of_four_are_scaled_and_added() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let mut random = Random::new(1);
    let (x, y) = (random.floats(400), random.floats(400));
    let (given, in_place) = (gpu.upload(&x), gpu.upload(&y));
    launch!(gpu, "scale_add", flat(1, 128); &2.5f32, &given, &in_place, &100u32);
    let expected: Vec<f32> = x
        .iter()
        .zip(&y)
        .map(|(x, y)| 2.5f32.mul_add(*x, *y))
        .collect();
    assert_eq!(gpu.download(&in_place), expected);
}

#[test]
fn blocks_sum_by_shuffles() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    for (n, threads) in [(500usize, 64u32), (10_000, 256)] {
        let input = Random::new(2).small(9, n);
        let blocks = n.div_ceil(threads as usize * 8);
        let given = gpu.upload(&input);
        let found = gpu.under_schedules(n == 500, || {
            let sums = gpu.unwritten::<f32>(blocks);
            launch!(gpu, "block_sums", flat(blocks as u32, threads); &given, &sums, &(n as u32));
            gpu.download(&sums)
        });
        let expected: Vec<f32> = input
            .chunks(threads as usize * 8)
            .map(|part| part.iter().sum())
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn lanes_of_a_warp_exchange() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input = Random::new(3).words(32);
    let given = gpu.upload(&input);
    for active in [32usize, 20] {
        let output = gpu.zeros::<u32>(32 * 16);
        launch!(gpu, "warp_operations", flat(1, 32); &given, &output, &(active as u32));
        let found = gpu.download(&output);
        let lanes = &input[..active];
        let members = if active == 32 {
            !0
        } else {
            (1u32 << active) - 1
        };
        let mask = |test: &dyn Fn(u32) -> bool| {
            (0..active)
                .filter(|i| test(lanes[*i]))
                .fold(0u32, |mask, i| mask | 1 << i)
        };
        for (lane, x) in lanes.iter().copied().enumerate() {
            // A shuffle from a lane that does not take part is undefined; with 20 lanes those are
            // down from 18 and 19.
            let from = |other: usize| lanes.get(other).copied();
            let down = if lane % 8 < 6 {
                from(lane + 2)
            } else {
                Some(x)
            };
            let any = u32::from(lanes.iter().any(|x| x % 7 == 0));
            let all = u32::from(lanes.iter().all(|x| *x < 4_000_000_000));
            let expected = [
                from(lane * 5 % active),
                Some(if lane < 3 { x } else { lanes[lane - 3] }),
                down,
                from(lane ^ 1),
                Some(mask(&|y| y & 1 == 1)),
                Some(all * 2 + any),
                Some(mask(&|y| y % 4 == x % 4)),
                Some(members.wrapping_add(1)),
                Some(lanes.iter().fold(0, |sum, y| sum.wrapping_add(*y))),
                lanes.iter().map(|y| *y as i32).max().map(|y| y as u32),
                lanes.iter().copied().min(),
                Some(lanes.iter().fold(0, |all, y| all | y)),
                Some(lanes.iter().fold(0, |all, y| all ^ y)),
                Some(lane as u32),
                Some(members),
                Some(members),
            ];
            for (i, expected) in expected.into_iter().enumerate() {
                if let Some(expected) = expected {
                    assert_eq!(found[lane * 16 + i], expected, "lane {lane}, output {i}");
                }
            }
        }
        assert!(found[active * 16..].iter().all(|x| *x == 0));
    }
}

#[test]
fn local_memory_is_each_threads_own() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let mut input = Random::new(8).words(64 * 16);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<u32>(input.len()));
    launch!(gpu, "sort_each", flat(1, 64); &given, &output);
    input.chunks_mut(16).for_each(<[u32]>::sort_unstable);
    assert_eq!(gpu.download(&output), input);
}

#[test]
fn module_data_is_there() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let primes = [2, 3, 5, 7, 11, 13, 17, 19];
    let table = [0.5f32, -1.25, 3e9, -0.0];
    let mut expected: Vec<u32> = (0..32).map(|i| primes[i % 8] + 7).collect();
    expected.extend((0..32).map(|i| table[i % 4].to_bits()));
    for tally in [40, 42] {
        let output = gpu.unwritten::<u32>(67);
        launch!(gpu, "module_data", flat(1, 32); &output);
        let found = gpu.download(&output);
        assert_eq!(found[..64], expected);
        assert_eq!(found[64..], [tally, (7i32 - 300) as u32, 3]);
    }
}

#[test]
fn parameters_come_as_a_struct() {
    #[repr(C)]
    struct Parameters {
        input: u64,
        output: u64,
        n: u32,
        factors: [f32; 5],
        which: u8,
    }
    // SAFETY: plain numbers, laid out as the kernel's own struct.
    unsafe impl DeviceRepr for Parameters {}

    use cudarc::driver::DevicePtr;
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input = Random::new(9).floats(32);
    let (given, output) = (gpu.upload(&input), gpu.zeros::<f32>(32));
    let factors = [1.0, -2.0, 0.5, 4.0, 0.25];
    {
        let (input, _read) = given.device_ptr(&gpu.stream);
        let (output, _written) = output.device_ptr(&gpu.stream);
        let parameters = Parameters {
            input,
            output,
            n: 30,
            factors,
            which: 3,
        };
        launch!(gpu, "parameter_struct", flat(1, 32); &parameters);
    }
    let product = |i: usize| {
        if i < 30 {
            input[i] * factors[(i + 3) % 5]
        } else {
            0.0
        }
    };
    assert_eq!(
        gpu.download(&output),
        (0..32).map(product).collect::<Vec<_>>()
    );
}

#[test]
fn barriers_vote() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    for odd in [0, 77, 96] {
        let input: Vec<u32> = (0..96).map(|i| u32::from(i < odd)).collect();
        let output = gpu.unwritten::<u32>(3);
        launch!(gpu, "block_votes", flat(1, 96); &gpu.upload(&input), &output);
        assert_eq!(
            gpu.download(&output),
            [odd, u32::from(odd == 96), u32::from(odd > 0)]
        );
    }
}

#[test]
fn named_barriers_pair_producers_with_consumers() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input = Random::new(11).small(100, 64 * 7);
    let given = gpu.upload(&input);
    let found = gpu.under_all_schedules(|| {
        let output = gpu.unwritten::<f32>(64);
        launch!(gpu, "producer_consumer", flat(1, 128); &given, &output, &7u32);
        gpu.download(&output)
    });
    let column = |lane: usize| input.iter().skip((lane + 1) % 64).step_by(64).sum::<f32>();
    assert_eq!(found, (0..64).map(column).collect::<Vec<_>>());
}

#[test]
fn a_cooperative_grid_meets() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input = Random::new(12).below(1000, 6 * 64);
    let given = gpu.upload(&input);
    let found = gpu.under_all_schedules(|| {
        let (totals, output) = (gpu.unwritten::<u32>(6), gpu.unwritten::<u32>(input.len()));
        let function = gpu.function("grid_sync");
        let mut builder = gpu.stream.launch_builder(&function);
        builder.arg(&given).arg(&totals).arg(&output);
        // SAFETY: the arguments are the kernel's; every block is resident at this size.
        unsafe { builder.launch_cooperative(flat(6, 64)) }.expect("a cooperative launch");
        gpu.download(&output)
    });
    let before = |i: usize| input[..i / 64 * 64].iter().sum::<u32>();
    let expected: Vec<u32> = input
        .iter()
        .enumerate()
        .map(|(i, x)| x + before(i))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_last_block_sums_in_order() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input = Random::new(13).floats(9 * 32);
    let given = gpu.upload(&input);
    let done = gpu.zeros::<u32>(1);
    let found = gpu.under_all_schedules(|| {
        let (partial, sum) = (gpu.unwritten::<f32>(9), gpu.unwritten::<f32>(1));
        launch!(gpu, "last_block", flat(9, 32); &given, &partial, &done, &sum);
        gpu.download(&sum)
    });
    let butterfly = |part: &[f32]| {
        let mut lanes = part.to_vec();
        for step in [16, 8, 4, 2, 1] {
            lanes = (0..32).map(|i| lanes[i] + lanes[i ^ step]).collect();
        }
        lanes[0]
    };
    assert_eq!(
        found,
        [input.chunks(32).map(butterfly).fold(0.0, |sum, x| sum + x)]
    );
}

#[test]
fn atomics_lose_nothing() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let (blocks, threads) = (3u32, 96u32);
    let all = blocks * threads;
    gpu.under_all_schedules(|| {
        let mut words = vec![0u32; 16 + all as usize];
        words[4] = !0;
        let (words, wide) = (gpu.upload(&words), gpu.zeros::<u64>(2));
        let (reals, doubles) = (gpu.zeros::<f32>(1), gpu.zeros::<f64>(1));
        let halves = gpu.zeros::<f16>(2);
        launch!(gpu, "atomics", flat(blocks, threads); &words, &wide, &reals, &doubles, &halves);
        let found = gpu.download(&words);
        let sum = all * (all - 1) / 2;
        let xor = (0..all).fold(0, |xor, i| xor ^ i);
        let largest = (0..all).map(|i| i * 7 % 1000).max().unwrap();
        // atomicInc counts 0 … 99 and starts again.
        let expected = [
            sum,
            largest,
            (all - 1).wrapping_neg(),
            !0,
            !0 << 7,
            xor,
            all % 100,
            (2 * all).wrapping_neg(),
            3 * all,
            all,
            sum,
        ];
        assert_eq!(found[..11], expected);
        let mut places = found[16..].to_vec();
        places.sort_unstable();
        assert_eq!(places, (0..all).collect::<Vec<_>>());
        assert_eq!(
            gpu.download(&wide),
            [u64::from(sum) << 20, u64::from(all - 1) << 33]
        );
        assert_eq!(gpu.download(&reals), [all as f32 / 4.0]);
        assert_eq!(gpu.download(&doubles), [f64::from(all) / 8.0]);
        let halves: Vec<f32> = gpu.download(&halves).iter().map(|x| x.to_f32()).collect();
        assert_eq!(halves, [all as f32, all as f32 / 2.0]);
    });
}

#[test]
fn lanes_diverge_and_meet_again() {
    let Some(gpu) = Gpu::load("cooperation") else {
        return;
    };
    let input: Vec<u32> = Random::new(14)
        .below(500, 200)
        .iter()
        .map(|x| x + 1)
        .collect();
    let steps = gpu.unwritten::<u32>(200);
    let configuration = LaunchConfig {
        block_dim: (96, 1, 1),
        ..flat(3, 1)
    };
    launch!(gpu, "collatz", configuration; &gpu.upload(&input), &steps, &200u32);
    let count = |x: &u32| {
        let (mut x, mut taken) = (*x, 0u32);
        while x != 1 {
            x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
            taken += 1;
        }
        match taken % 4 {
            0 => taken + 1000,
            1 => taken + 2000,
            2 => taken ^ 0xffff,
            _ => taken * 3,
        }
    };
    assert_eq!(
        gpu.download(&steps),
        input.iter().map(count).collect::<Vec<_>>()
    );
}

/// Launches one block of 64 threads on `words`, programmatically: it may begin before the kernel
/// ahead of it in the stream has ended.
fn launch_programmatically(gpu: &Gpu, kernel: &str, words: &[&CudaSlice<u32>]) {
    let function = gpu.function(kernel);
    let mut addresses: Vec<u64> = words.iter().map(|w| w.device_ptr(&gpu.stream).0).collect();
    let mut arguments: Vec<*mut std::ffi::c_void> = addresses
        .iter_mut()
        .map(|address| std::ptr::from_mut(address).cast())
        .collect();
    // SAFETY: all zeros is a value of this plain C struct: attribute 0 is to be ignored.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 64,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: gpu.stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the kernels take as many addresses as the test passes, of 64 words each.
    unsafe {
        sys::cuLaunchKernelEx(
            &config,
            function.cu_function(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .expect("a launch");
}

#[test]
fn a_dependent_launch_waits_for_what_it_reads() {
    let Some(gpu) = Gpu::load("hopper") else {
        return;
    };
    let found = gpu.under_all_schedules(|| {
        let words = gpu.unwritten::<u32>(64);
        let doubled = gpu.unwritten::<u32>(64);
        launch_programmatically(&gpu, "first_of_two", &[&words]);
        launch_programmatically(&gpu, "second_of_two", &[&words, &doubled]);
        gpu.download(&doubled)
    });
    assert!(found.iter().zip(0..).all(|(found, i)| *found == 2 * i));
}
