use super::super::descriptor::Swizzle;
use super::super::documented;
use super::*;

/// A matrix in shared memory, laid out as a kernel's author would: by walking the nested blocks of
/// the canonical layout, the other way round from the descriptor's address function.
struct Tile {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    transposed: bool,
}

impl Tile {
    fn descriptor(&self) -> u64 {
        let mode = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        };
        let field = |bytes: u32| u64::from(bytes >> 4);
        field(self.start) | field(self.leading) << 16 | field(self.stride) << 32 | mode << 62
    }

    /// Stores the matrix as CUDA code does that writes swizzled tiles: loops over the nested
    /// blocks of the layout, and in the end moves chunk c of line l to chunk c ^ (l mod lines).
    fn store(
        &self,
        shared: &mut [u8],
        mn: usize,
        k: usize,
        element: usize,
        bytes: impl Fn(usize, usize) -> Vec<u8>,
    ) {
        let per_chunk = 16 / element;
        let chunks = self.swizzle.width() as usize / 16;
        let (start, leading, stride) = (
            self.start as usize,
            self.leading as usize,
            self.stride as usize,
        );
        let mut put = |offset: usize, line: usize, chunk: usize, data: &[u8]| {
            // A line is the run of `chunks` chunks that the pattern permutes; 128 bytes hold
            // 8 / chunks of them, and all of those share a permutation.
            let permuted = chunk ^ (line * chunks / 8 % chunks);
            let at = start + offset + 16 * permuted;
            shared[at..at + 16].copy_from_slice(data);
        };
        let data = |coordinates: &dyn Fn(usize) -> (usize, usize)| -> Vec<u8> {
            let one = |i| {
                let (mn, k) = coordinates(i);
                bytes(mn, k)
            };
            (0..per_chunk).flat_map(one).collect()
        };
        if self.transposed {
            for outer in 0..mn / per_chunk / chunks {
                for chunk in 0..chunks {
                    for k in 0..k {
                        let first = (outer * chunks + chunk) * per_chunk;
                        let data = data(&|i| (first + i, k));
                        let (group, line) = (k / 8, k % 8);
                        let offset = match self.swizzle {
                            Swizzle::None => outer * stride + group * leading,
                            _ => outer * leading + group * stride,
                        };
                        put(offset + line * 16 * chunks, line, chunk, &data);
                    }
                }
            }
        } else {
            for row in 0..mn {
                for chunk in 0..k / per_chunk {
                    let data = data(&|i| (row, chunk * per_chunk + i));
                    let (group, line) = (row / 8, row % 8);
                    match self.swizzle {
                        Swizzle::None => {
                            put(group * stride + chunk * leading + line * 16, 0, 0, &data);
                        }
                        _ => put(group * stride + line * 16 * chunks, line, chunk, &data),
                    }
                }
            }
        }
    }
}

fn bf16(value: i32) -> Vec<u8> {
    half::bf16::from_f32(value as f32).to_le_bytes().to_vec()
}

fn encode(element: Element, value: i32) -> Vec<u8> {
    match element {
        Element::Bf16 => bf16(value),
        Element::F16 => half::f16::from_f32(value as f32).to_le_bytes().to_vec(),
        Element::Tf32 => (value as f32).to_le_bytes().to_vec(),
        Element::S8 => vec![value as u8],
        other => panic!("{other:?}"),
    }
}

fn size(element: Element) -> usize {
    4 / element.per_register()
}

/// Small values with no symmetry that could hide an exchange.
fn a_value(row: usize, k: usize) -> i32 {
    (row * 7 + k * 3 + row * k) as i32 % 11 - 5
}

fn b_value(k: usize, column: usize) -> i32 {
    (k * 5 + column * 9 + k * column) as i32 % 13 - 6
}

fn reader(shared: &[u8]) -> impl FnMut(u32, &mut [u8; 16]) -> Result<(), Fault> + '_ {
    |address, out| {
        assert_eq!(address % 16, 0);
        out.copy_from_slice(&shared[address as usize..address as usize + 16]);
        Ok(())
    }
}

/// Multiplies with the instruction and compares with the naive product.
fn check(operation: &Wgmma, a: Option<Tile>, b: Tile, keep: bool) {
    let (n, k) = (operation.n as usize, operation.k());
    let sign = if operation.modifiers.negate_a == operation.modifiers.negate_b {
        1
    } else {
        -1
    };
    let mut shared = vec![0xee; 0x3_0000];
    let value = |k, column| encode(operation.b, b_value(k, column));
    b.store(&mut shared, n, k, size(operation.b), |column, k| {
        value(k, column)
    });
    if let Some(a) = &a {
        let value = |row, k| encode(operation.a, a_value(row, k));
        a.store(&mut shared, 64, k, size(operation.a), value);
    }
    let figure = documented::d_m16(n);
    let per = operation.accumulator.per_register();
    for warp in 0..4 {
        let operand = match &a {
            Some(a) => OperandA::Shared(Descriptor::decode(a.descriptor())),
            None => {
                let figure = documented::a_m16k16_16bit();
                let mut registers = [[0; 32]; 4];
                for row in 0..16 {
                    for k in 0..16 {
                        let (lane, element) = figure.at(row, k);
                        let bytes = encode(operation.a, a_value(16 * warp + row, k));
                        let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
                        registers[element / 2][lane] |= bits << (16 * (element % 2));
                    }
                }
                OperandA::Registers(Box::new(registers))
            }
        };
        let old = |row: usize, column: usize| (row * 3 + column) as i32 % 17 - 8;
        let bits = |value: i32| match operation.accumulator {
            Accumulator::F32 => (value as f32).to_bits(),
            Accumulator::S32 => value as u32,
            Accumulator::F16 => half::f16::from_f32(value as f32).to_bits().into(),
        };
        let fill = |value: &dyn Fn(usize, usize) -> i32| {
            let mut registers = vec![[0; 32]; operation.accumulator_registers()];
            for row in 0..16 {
                for column in 0..n {
                    let (lane, element) = figure.at(row, column);
                    registers[element / per][lane] |=
                        bits(value(16 * warp + row, column)) << (16 * (element % per));
                }
            }
            registers
        };
        let mut d = fill(&old);
        let mut announced = Vec::new();
        operation
            .for_each_address(
                warp as u32,
                &operand,
                Descriptor::decode(b.descriptor()),
                |address| {
                    announced.push(address);
                    Ok(())
                },
            )
            .unwrap();
        let mut read = Vec::new();
        let mut reader = reader(&shared);
        operation
            .multiply(
                warp as u32,
                &operand,
                Descriptor::decode(b.descriptor()),
                keep,
                &mut d,
                &mut |address, out| {
                    read.push(address);
                    reader(address, out)
                },
            )
            .unwrap();
        read.sort_unstable();
        announced.sort_unstable();
        assert_eq!(announced, read);
        let expected = fill(&|row, column| {
            let sum: i32 = (0..k).map(|i| a_value(row, i) * b_value(i, column)).sum();
            sign * sum + if keep { old(row, column) } else { 0 }
        });
        assert_eq!(
            d, expected,
            "warp {warp} of {operation:?}, swizzle {:?}",
            b.swizzle
        );
    }
}

const SWIZZLES: [Swizzle; 4] = [
    Swizzle::None,
    Swizzle::Bytes32,
    Swizzle::Bytes64,
    Swizzle::Bytes128,
];

/// A K-major tile in which the strides are as small as the layout allows, plus some slack.
fn k_major(start: u32, swizzle: Swizzle, slack: u32) -> Tile {
    let group = 8 * swizzle.width();
    match swizzle {
        // The two chunks along K follow all rows (256 of them at most).
        Swizzle::None => Tile {
            start,
            leading: 33 * (group + slack),
            stride: group + slack,
            swizzle,
            transposed: false,
        },
        _ => Tile {
            start,
            leading: 16,
            stride: group + slack * 64,
            swizzle,
            transposed: false,
        },
    }
}

fn mn_major(start: u32, swizzle: Swizzle, slack: u32) -> Tile {
    let group = 8 * swizzle.width();
    // Two groups of eight k; the groups along M or N follow them.
    let (near, far) = (group + slack * 64, 2 * (group + slack * 64));
    let (leading, stride) = match swizzle {
        Swizzle::None => (near, far),
        _ => (far, near),
    };
    Tile {
        start,
        leading,
        stride,
        swizzle,
        transposed: true,
    }
}

fn form(n: u32, element: Element, accumulator: Accumulator, modifiers: Modifiers) -> Wgmma {
    Wgmma::new(n, element, element, accumulator, modifiers).unwrap()
}

#[test]
fn every_n_multiplies_with_a_in_registers_and_in_shared_memory() {
    for n in (8..=256).step_by(8) {
        let swizzle = SWIZZLES[n as usize / 8 % 4];
        let operation = form(n, Element::Bf16, Accumulator::F32, Modifiers::default());
        check(
            &operation,
            None,
            k_major(0x1_0000, swizzle, 16),
            n % 16 == 0,
        );
        let a = k_major(0x400, Swizzle::Bytes128, 0);
        check(
            &operation,
            Some(a),
            k_major(0x1_0000, swizzle, 0),
            n % 16 != 0,
        );
    }
}

#[test]
fn every_swizzle_and_transposition_reads_what_was_stored() {
    for a_swizzle in SWIZZLES {
        for b_swizzle in SWIZZLES {
            for (transpose_a, transpose_b) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let modifiers = Modifiers {
                    transpose_a,
                    transpose_b,
                    ..Modifiers::default()
                };
                let operation = form(64, Element::F16, Accumulator::F32, modifiers);
                let layout = |transposed, start, swizzle| {
                    if transposed {
                        mn_major(start, swizzle, 16)
                    } else {
                        k_major(start, swizzle, 16)
                    }
                };
                let a = layout(transpose_a, 0x800, a_swizzle);
                check(
                    &operation,
                    Some(a),
                    layout(transpose_b, 0x1_0000, b_swizzle),
                    true,
                );
            }
        }
    }
}

#[test]
fn other_types_signs_and_accumulators() {
    let plain = Modifiers::default();
    for swizzle in SWIZZLES {
        let (a, b) = (k_major(0, swizzle, 16), k_major(0x1_0000, swizzle, 16));
        check(
            &form(72, Element::Tf32, Accumulator::F32, plain),
            Some(a),
            b,
            true,
        );
        let (a, b) = (k_major(0, swizzle, 16), k_major(0x1_0000, swizzle, 16));
        check(
            &form(48, Element::S8, Accumulator::S32, plain),
            Some(a),
            b,
            false,
        );
        let (a, b) = (k_major(0, swizzle, 16), k_major(0x1_0000, swizzle, 16));
        check(
            &form(24, Element::F16, Accumulator::F16, plain),
            Some(a),
            b,
            true,
        );
    }
    for (negate_a, negate_b) in [(true, false), (false, true), (true, true)] {
        let modifiers = Modifiers {
            negate_a,
            negate_b,
            ..plain
        };
        let operation = form(16, Element::Bf16, Accumulator::F32, modifiers);
        check(&operation, None, k_major(0, Swizzle::Bytes64, 0), true);
    }
}

#[test]
fn a_start_inside_the_swizzled_row_steps_along_k() {
    // 64 elements of K in 128-byte rows: the second step of 16 starts 32 bytes further on.
    let operation = form(16, Element::Bf16, Accumulator::F32, Modifiers::default());
    let whole = k_major(0x1000, Swizzle::Bytes128, 0);
    let mut shared = vec![0; 0x4000];
    let step = 1;
    whole.store(&mut shared, 16, 64, 2, |column, k| {
        bf16(if k / 16 == step {
            b_value(k % 16, column)
        } else {
            77
        })
    });
    let mut one = [[0; 32]; 4];
    // Row 0 of A is the unit vector of k = 5.
    one[0][2] = 0x3f80 << 16;
    let mut d = vec![[0; 32]; 8];
    let b = Descriptor::decode(whole.descriptor() + 32 * step as u64 / 16);
    let a = OperandA::Registers(Box::new(one));
    operation
        .multiply(0, &a, b, false, &mut d, &mut reader(&shared))
        .unwrap();
    let figure = documented::d_m16(16);
    for column in 0..16 {
        let (lane, element) = figure.at(0, column);
        assert_eq!(f32::from_bits(d[element][lane]), b_value(5, column) as f32);
    }
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    let plain = Modifiers::default();
    let transposed = Modifiers {
        transpose_b: true,
        ..plain
    };
    let negated = Modifiers {
        negate_a: true,
        ..plain
    };
    use Element as E;
    for (n, element, accumulator, modifiers) in [
        (0, E::Bf16, Accumulator::F32, plain),
        (12, E::Bf16, Accumulator::F32, plain),
        (264, E::Bf16, Accumulator::F32, plain),
        (64, E::Bf16, Accumulator::F16, plain),
        (64, E::Tf32, Accumulator::F32, transposed),
        (40, E::S8, Accumulator::S32, plain),
        (64, E::S8, Accumulator::S32, negated),
    ] {
        assert_eq!(
            Wgmma::new(n, element, element, accumulator, modifiers),
            None
        );
    }
}

#[test]
fn a_failed_read_is_passed_on() {
    let operation = form(8, Element::Bf16, Accumulator::F32, Modifiers::default());
    let fault = Fault::new(crate::fault::Kind::OutOfBounds, "far away");
    let a = OperandA::Registers(Box::new([[0; 32]; 4]));
    let result = operation.multiply(
        0,
        &a,
        Descriptor::decode(0),
        false,
        &mut [[0; 32]; 4],
        &mut |_, _| Err(fault.clone()),
    );
    assert_eq!(result, Err(fault));
}
