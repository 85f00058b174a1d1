//! The boxes that `cp.async.bulk.tensor` moves in `.tile` mode, cut into pieces.
//!
//! PTX ISA, "Tensors"; CUDA driver API, `cuTensorMapEncodeTiled`. The box lies densely in shared
//! memory, dimension 0 innermost, ⌈box/stride⌉ elements along each dimension; the swizzle permutes
//! chunks of 16 bytes by their absolute shared addresses. What lies outside the tensor is filled
//! on a load and left out of a store.

use super::{Fill, Location, Piece, Space};
use crate::fault::{Fault, Kind};
use crate::tensor::descriptor;
use crate::tensor_map::{DataType, Swizzle, TensorMap};

/// The pieces of a load of the box at `coordinates` (dimension 0 first) to `to` in shared memory.
///
/// # Errors
/// `InvalidValue` if there are not as many coordinates as dimensions, `Misaligned` if `to` is no
/// multiple of 128 bytes, `Unsupported` for types that are converted on the way and for rows
/// narrower than their swizzle.
pub fn load(map: &TensorMap, coordinates: &[i32], to: Location) -> Result<Vec<Piece>, Fault> {
    let tile = Tile::new(map, coordinates, to)?;
    let mut pieces = Vec::new();
    tile.rows(|row| {
        for part in tile.parts(&row) {
            let to = tile.shared(row.offset + part.offset);
            let Some((first, bytes)) = part.inside else {
                pieces.push(Piece {
                    from: None,
                    to,
                    bytes: part.bytes,
                    read: 0,
                    fill: tile.fill,
                });
                continue;
            };
            // Only the tensor's start lies before the part's first byte that is inside.
            if first > part.offset {
                pieces.push(Piece {
                    from: None,
                    to,
                    bytes: first - part.offset,
                    read: 0,
                    fill: tile.fill,
                });
            }
            pieces.push(Piece {
                from: Some(row.global(first)),
                to: to.plus(u64::from(first - part.offset)),
                bytes: part.offset + part.bytes - first,
                read: bytes,
                fill: tile.fill,
            });
        }
    });
    Ok(pieces)
}

/// The pieces of a store of the box in shared memory at `from` to `coordinates`.
///
/// # Errors
/// As [`load`].
pub fn store(map: &TensorMap, coordinates: &[i32], from: Location) -> Result<Vec<Piece>, Fault> {
    let tile = Tile::new(map, coordinates, from)?;
    let mut pieces = Vec::new();
    tile.rows(|row| {
        for part in tile.parts(&row) {
            if let Some((first, bytes)) = part.inside {
                let skipped = u64::from(first - part.offset);
                let from = tile.shared(row.offset + part.offset).plus(skipped);
                pieces.push(Piece::plain(from, row.global(first), bytes));
            }
        }
    });
    Ok(pieces)
}

/// A box in shared memory.
struct Tile<'a> {
    map: &'a TensorMap,
    coordinates: &'a [i32],
    at: Location,
    swizzle: descriptor::Swizzle,
    fill: Fill,
    /// Bytes of an element.
    size: u32,
    /// Elements in shared memory along each dimension.
    extents: Vec<u32>,
}

/// One run along dimension 0.
struct Row {
    /// Byte offset from the start of the box.
    offset: u32,
    /// The device address of the run's first byte (which may lie outside the tensor), and the
    /// bytes of the run that lie inside.
    start: u64,
    inside: std::ops::Range<u32>,
}

impl Row {
    const fn global(&self, offset: u32) -> Location {
        Location::global(self.start).plus(offset as u64)
    }
}

/// A part of a row that is contiguous in shared memory.
struct Part {
    /// Byte offset in the row.
    offset: u32,
    bytes: u32,
    /// The first byte inside the tensor (an offset in the row), and how many there are.
    inside: Option<(u32, u32)>,
}

impl<'a> Tile<'a> {
    fn new(map: &'a TensorMap, coordinates: &'a [i32], at: Location) -> Result<Self, Fault> {
        use DataType::{Bfloat16, Float16, Float32, Float32Ftz, Float64, Tfloat32, Tfloat32Ftz};
        let rank = map.dims.len();
        if coordinates.len() != rank {
            return Err(Fault::new(
                Kind::InvalidValue,
                format!(
                    "{} coordinates for a tensor map of {rank} dimensions",
                    coordinates.len()
                ),
            ));
        }
        if !at.address.is_multiple_of(128) || at.space == Space::Global {
            return Err(Fault::new(
                Kind::Misaligned,
                format!(
                    "the box of a tensor copy lies at shared address {:#x}, no multiple of 128",
                    at.address
                ),
            ));
        }
        let size = map.data_type.size() as u32;
        let fill = match map.data_type {
            Float32Ftz | Tfloat32 | Tfloat32Ftz => {
                return Err(Fault::new(
                    Kind::Unsupported,
                    format!("tensor copies that convert to {:?}", map.data_type),
                ));
            }
            _ if !map.nan_fill => Fill::Zeros,
            // The payload is not documented: these are the canonical NaNs of arithmetic.
            Float16 | Bfloat16 => Fill::Nans(0x7fff, 2),
            Float32 => Fill::Nans(0x7fff_ffff, 4),
            Float64 => Fill::Nans(0x7fff_ffff_ffff_ffff, 8),
            _ => Fill::Zeros,
        };
        let swizzle = match map.swizzle {
            Swizzle::None => descriptor::Swizzle::None,
            Swizzle::Bytes32 => descriptor::Swizzle::Bytes32,
            Swizzle::Bytes64 => descriptor::Swizzle::Bytes64,
            Swizzle::Bytes128 => descriptor::Swizzle::Bytes128,
        };
        let strides = map.element_strides.iter().enumerate();
        let extents: Vec<u32> = strides
            .zip(&map.box_dims)
            // Without interleaving the stride of dimension 0 is ignored.
            .map(|((i, &stride), &size)| if i == 0 { size } else { size.div_ceil(stride) })
            .collect();
        if swizzle != descriptor::Swizzle::None && extents[0] * size != swizzle.width() {
            return Err(Fault::new(
                Kind::Unsupported,
                format!(
                    "a tensor copy with rows of {} bytes and a swizzle of {}",
                    extents[0] * size,
                    swizzle.width()
                ),
            ));
        }
        Ok(Self {
            map,
            coordinates,
            at,
            swizzle,
            fill,
            size,
            extents,
        })
    }

    /// Calls `f` with every row, in the order of shared memory.
    fn rows(&self, mut f: impl FnMut(Row)) {
        let rows: u32 = self.extents[1..].iter().product();
        let row_bytes = self.extents[0] * self.size;
        for number in 0..rows {
            let mut rest = number;
            let mut start = self.map.address;
            let mut inside = true;
            for dimension in 1..self.extents.len() {
                let index = rest % self.extents[dimension];
                rest /= self.extents[dimension];
                let step = i64::from(index) * i64::from(self.map.element_strides[dimension]);
                let coordinate = i64::from(self.coordinates[dimension]) + step;
                inside &= u64::try_from(coordinate).is_ok_and(|c| c < self.map.dims[dimension]);
                let bytes = coordinate.wrapping_mul(self.map.strides[dimension - 1] as i64);
                start = start.wrapping_add_signed(bytes);
            }
            let first = i64::from(self.coordinates[0]);
            start = start.wrapping_add_signed(first * i64::from(self.size));
            let clamp = |element: i64| {
                (element - first).clamp(0, self.extents[0].into()) as u32 * self.size
            };
            let end = i64::try_from(self.map.dims[0]).unwrap_or(i64::MAX);
            let inside = if inside { clamp(0)..clamp(end) } else { 0..0 };
            f(Row {
                offset: number * row_bytes,
                start,
                inside,
            });
        }
    }

    /// Cuts a row where shared memory is not contiguous, and to the size of a piece.
    fn parts(&self, row: &Row) -> impl Iterator<Item = Part> + use<> {
        let row_bytes = self.extents[0] * self.size;
        let longest = match self.swizzle {
            descriptor::Swizzle::None => Piece::MOST,
            _ => 16,
        };
        let inside = row.inside.clone();
        (0..row_bytes).step_by(longest as usize).map(move |offset| {
            let bytes = longest.min(row_bytes - offset);
            let first = inside.start.max(offset);
            let end = inside.end.min(offset + bytes);
            Part {
                offset,
                bytes,
                inside: (first < end).then(|| (first, end - first)),
            }
        })
    }

    /// Where a byte of the box lies.
    fn shared(&self, offset: u32) -> Location {
        let address = self.swizzle.apply(self.at.address as u32 + offset, 0);
        Location {
            address: address.into(),
            ..self.at
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;
    use crate::copy::move_piece;

    const TO: Location = Location::shared(0, 0x800);

    /// A tensor whose element at linear index i holds i + 1 (as 16 bits), rows padded to 16 bytes.
    fn tensor(dims: &[u64], box_dims: &[u32], swizzle: Swizzle) -> (TensorMap, Fake) {
        let mut strides = Vec::new();
        let mut stride = (dims[0] * 2).next_multiple_of(16);
        for dim in &dims[1..] {
            strides.push(stride);
            stride *= dim;
        }
        let map = TensorMap {
            data_type: DataType::Uint16,
            address: 0x1000_0000,
            dims: dims.to_vec(),
            strides,
            box_dims: box_dims.to_vec(),
            element_strides: vec![1; dims.len()],
            swizzle,
            nan_fill: false,
        };
        map.check().unwrap();
        let mut fake = Fake::default();
        let mut index = vec![0; dims.len()];
        for value in 1..=dims.iter().product::<u64>() as u16 {
            fake.put(element(&map, &index).unwrap(), &value.to_le_bytes());
            for (i, dim) in index.iter_mut().zip(dims) {
                *i += 1;
                if (*i as u64) < *dim {
                    break;
                }
                *i = 0;
            }
        }
        (map, fake)
    }

    /// The location of an element, by the definition; `None` outside the tensor.
    fn element(map: &TensorMap, index: &[i64]) -> Option<Location> {
        let inside = index
            .iter()
            .zip(&map.dims)
            .all(|(&i, &dim)| i >= 0 && (i as u64) < dim);
        let sizes = std::iter::once(2).chain(map.strides.iter().copied());
        let offset: i64 = index
            .iter()
            .zip(sizes)
            .map(|(&i, stride)| i * stride as i64)
            .sum();
        inside.then(|| Location::global(map.address.wrapping_add_signed(offset)))
    }

    fn run(pieces: &[Piece], fake: &mut Fake) {
        for piece in pieces {
            assert!(piece.bytes <= Piece::MOST && piece.read <= piece.bytes);
            move_piece(piece, &[], &"tile", fake).unwrap();
        }
    }

    /// Where CUDA code finds element (i₀, line) of a box with that swizzle: the chunk's number
    /// within its row, exclusive or the number of the 128-byte line.
    fn swizzled(i0: u32, line: u32, swizzle: Swizzle) -> u32 {
        let width = swizzle.span().unwrap_or(16) as u32;
        let byte = line * width + i0 * 2;
        match swizzle {
            Swizzle::None => unreachable!("a dense box"),
            _ => {
                byte / width * width
                    + ((byte % width / 16) ^ (byte / 128 % (width / 16))) * 16
                    + byte % 16
            }
        }
    }

    #[test]
    fn boxes_of_every_rank_hold_the_elements_that_the_definition_names() {
        let cases: [(&[u64], &[u32], &[i32]); 6] = [
            (&[50], &[24], &[3]),
            (&[40, 9], &[16, 4], &[8, 3]),
            (&[40, 9], &[8, 4], &[36, 7]),
            (&[40, 9, 3], &[8, 3, 2], &[-5, -1, 2]),
            (&[9, 3, 4, 5], &[16, 2, 2, 3], &[-2, 1, 2, -1]),
            (&[9, 3, 4, 2, 3], &[8, 2, 2, 2, 2], &[1, 1, 1, 1, 2]),
        ];
        for (dims, box_dims, coordinates) in cases {
            for strides in [1, 2, 3] {
                let (mut map, mut fake) = tensor(dims, box_dims, Swizzle::None);
                map.element_strides = vec![strides; dims.len()];
                let pieces = load(&map, coordinates, TO).unwrap();
                run(&pieces, &mut fake);
                let extent = |i: usize| {
                    if i == 0 {
                        box_dims[0]
                    } else {
                        box_dims[i].div_ceil(strides)
                    }
                };
                let extents: Vec<u32> = (0..dims.len()).map(extent).collect();
                let count: u32 = extents.iter().product();
                assert_eq!(pieces.iter().map(|p| p.bytes).sum::<u32>(), 2 * count);
                for number in 0..count {
                    let mut rest = number;
                    let mut index = Vec::new();
                    for (i, extent) in extents.iter().enumerate() {
                        let step = if i == 0 { 1 } else { strides };
                        index.push(i64::from(coordinates[i]) + i64::from(rest % extent * step));
                        rest /= extent;
                    }
                    let expected = element(&map, &index).map_or(vec![0, 0], |at| fake.get(at, 2));
                    let found = fake.get(TO.plus(u64::from(2 * number)), 2);
                    assert_eq!(found, expected, "{dims:?} {index:?}");
                }
            }
        }
    }

    #[test]
    fn swizzled_boxes_come_back_as_they_were_stored() {
        for swizzle in [Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
            let width = swizzle.span().unwrap() as u32 / 2;
            let (map, mut fake) = tensor(&[100, 30], &[width, 19], swizzle);
            let coordinates = [-3, 14];
            run(&load(&map, &coordinates, TO).unwrap(), &mut fake);
            for line in 0..19 {
                for i in 0..width {
                    let index = [i64::from(i) - 3, i64::from(line) + 14];
                    let expected = element(&map, &index).map_or(vec![0, 0], |at| fake.get(at, 2));
                    let at = TO.plus(swizzled(i, line, swizzle).into());
                    assert_eq!(fake.get(at, 2), expected, "{swizzle:?} {index:?}");
                }
            }
            let before = fake.memory.clone();
            run(&store(&map, &coordinates, TO).unwrap(), &mut fake);
            assert_eq!(
                fake.memory, before,
                "storing what was loaded changes nothing"
            );
            for at in 0..width * 2 * 19 {
                fake.put(TO.plus(at.into()), &[0xff]);
            }
            run(&store(&map, &coordinates, TO).unwrap(), &mut fake);
            for (index, inside) in [([0, 14], true), ([0, 13], false), ([1, 29], true)] {
                let written = fake.get(element(&map, &index).unwrap(), 2) == [0xff; 2];
                assert_eq!(written, inside, "{index:?}");
            }
            let changed = fake
                .memory
                .iter()
                .filter(|(at, byte)| at.0 == Space::Global && before.get(at) != Some(byte));
            assert!(
                changed.count() <= (width as usize - 3) * 16 * 2,
                "nothing else is written"
            );
        }
    }

    #[test]
    fn outside_elements_can_be_nans() {
        let (mut map, mut fake) = tensor(&[20, 2], &[8, 4], Swizzle::None);
        map.data_type = DataType::Bfloat16;
        map.nan_fill = true;
        run(&load(&map, &[18, 1], TO).unwrap(), &mut fake);
        let words: Vec<u8> = fake.get(TO, 64);
        let nans = words
            .as_chunks::<2>()
            .0
            .iter()
            .filter(|w| **w == [0xff, 0x7f])
            .count();
        assert_eq!(nans, 30);
        assert_eq!(words[..4], [39, 0, 40, 0]);
    }

    #[test]
    fn boxes_that_cannot_be_are_refused() {
        let (map, _) = tensor(&[64, 64], &[32, 8], Swizzle::Bytes128);
        assert_eq!(load(&map, &[0, 0], TO).unwrap_err().kind, Kind::Unsupported);
        let (map, mut fake) = tensor(&[64, 64], &[64, 8], Swizzle::Bytes128);
        assert_eq!(load(&map, &[0], TO).unwrap_err().kind, Kind::InvalidValue);
        assert_eq!(
            store(&map, &[0, 0], TO.plus(64)).unwrap_err().kind,
            Kind::Misaligned
        );
        let far = load(&map, &[i32::MIN, i32::MAX], TO).unwrap();
        run(&far, &mut fake);
        assert_eq!(fake.read, 0);
        assert!(store(&map, &[i32::MAX, i32::MIN], TO).unwrap().is_empty());
        let map = TensorMap {
            data_type: DataType::Tfloat32,
            ..map
        };
        assert_eq!(load(&map, &[0, 0], TO).unwrap_err().kind, Kind::Unsupported);
    }
}
