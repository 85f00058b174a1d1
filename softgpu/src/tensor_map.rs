//! Tensor maps: what `cuTensorMapEncodeTiled` writes and the bulk tensor copies read.
//!
//! The 128 bytes are opaque in the API, so their layout here is softgpu's own. The rules that
//! [`TensorMap::check`] enforces are the driver API manual's.

use std::fmt;

/// Size of an encoded map.
pub const BYTES: usize = 128;

const MAGIC: u32 = 0x5047_4D54;
const MAX_RANK: usize = 5;

/// The type of a tensor's elements, numbered as `CUtensorMapDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says all there is to say")]
#[repr(u8)]
pub enum DataType {
    Uint8 = 0,
    Uint16 = 1,
    Uint32 = 2,
    Int32 = 3,
    Uint64 = 4,
    Int64 = 5,
    Float16 = 6,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
    Float32Ftz = 10,
    Tfloat32 = 11,
    Tfloat32Ftz = 12,
}

impl DataType {
    const ALL: [DataType; 13] = {
        use DataType::*;
        [
            Uint8,
            Uint16,
            Uint32,
            Int32,
            Uint64,
            Int64,
            Float16,
            Float32,
            Float64,
            Bfloat16,
            Float32Ftz,
            Tfloat32,
            Tfloat32Ftz,
        ]
    };

    /// The type of that number.
    pub fn from_number(number: u32) -> Option<DataType> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        use DataType::*;
        match self {
            Uint8 => 1,
            Uint16 | Float16 | Bfloat16 => 2,
            Uint32 | Int32 | Float32 | Float32Ftz | Tfloat32 | Tfloat32Ftz => 4,
            Uint64 | Int64 | Float64 => 8,
        }
    }

    fn is_float(self) -> bool {
        use DataType::*;
        !matches!(self, Uint8 | Uint16 | Uint32 | Int32 | Uint64 | Int64)
    }
}

/// How a box lies in shared memory, numbered as `CUtensorMapSwizzle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says all there is to say")]
#[repr(u8)]
pub enum Swizzle {
    None = 0,
    Bytes32 = 1,
    Bytes64 = 2,
    Bytes128 = 3,
}

impl Swizzle {
    /// The swizzle of that number.
    pub fn from_number(number: u32) -> Option<Swizzle> {
        [
            Swizzle::None,
            Swizzle::Bytes32,
            Swizzle::Bytes64,
            Swizzle::Bytes128,
        ]
        .get(usize::try_from(number).ok()?)
        .copied()
    }

    /// The longest row of a box that the pattern covers, bytes.
    pub fn span(self) -> Option<u64> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }
}

/// A tiled tensor in global memory and the box of it that one copy moves.
///
/// Dimension 0 is the innermost, contiguous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The element type.
    pub data_type: DataType,
    /// Device address of element (0, 0, …).
    pub address: u64,
    /// Elements along each of the one to five dimensions.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, for dimensions 1 and up.
    pub strides: Vec<u64>,
    /// Elements of the box along each dimension.
    pub box_dims: Vec<u32>,
    /// Steps between elements that are taken, per dimension.
    pub element_strides: Vec<u32>,
    /// The layout in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements outside the tensor read as NaN instead of 0.
    pub nan_fill: bool,
}

/// Which rule of the manual a map breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapError(String);

impl fmt::Display for TensorMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TensorMapError {}

impl TensorMap {
    /// Checks the manual's rules.
    pub fn check(&self) -> Result<(), TensorMapError> {
        let rule = |holds: bool, text: &dyn Fn() -> String| {
            if holds {
                Ok(())
            } else {
                Err(TensorMapError(text()))
            }
        };
        let rank = self.dims.len();
        rule((1..=MAX_RANK).contains(&rank), &|| {
            format!("tensorRank is {rank}, not 1 to 5")
        })?;
        rule(
            self.strides.len() == rank - 1
                && self.box_dims.len() == rank
                && self.element_strides.len() == rank,
            &|| "the arrays differ in length".into(),
        )?;
        rule(self.address.is_multiple_of(16), &|| {
            format!("globalAddress {:#x} is no multiple of 16", self.address)
        })?;
        for (at, dim) in self.dims.iter().enumerate() {
            rule((1..=1 << 32).contains(dim), &|| {
                format!("globalDim[{at}] is {dim}, not 1 to 2^32")
            })?;
        }
        for (at, stride) in self.strides.iter().enumerate() {
            rule(
                stride.is_multiple_of(16) && (1..1 << 40).contains(stride),
                &|| format!("globalStrides[{at}] is {stride}, not a multiple of 16 below 2^40"),
            )?;
        }
        for (at, size) in self.box_dims.iter().enumerate() {
            rule((1..=256).contains(size), &|| {
                format!("boxDim[{at}] is {size}, not 1 to 256")
            })?;
        }
        for (at, step) in self.element_strides.iter().enumerate() {
            rule((1..=8).contains(step), &|| {
                format!("elementStrides[{at}] is {step}, not 1 to 8")
            })?;
        }
        let row = u64::from(self.box_dims[0]) * self.data_type.size();
        rule(row.is_multiple_of(16), &|| {
            format!("a row of the box is {row} bytes, no multiple of 16")
        })?;
        if let Some(span) = self.swizzle.span() {
            rule(row <= span, &|| {
                format!("a row of the box is {row} bytes, more than the swizzle's {span}")
            })?;
        }
        rule(!self.nan_fill || self.data_type.is_float(), &|| {
            "oobFill asks for NaN in a tensor of integers".into()
        })
    }

    /// The 128 bytes of a map that [`TensorMap::check`] accepts.
    pub fn encode(&self) -> [u8; BYTES] {
        let mut out = Vec::with_capacity(BYTES);
        out.extend(MAGIC.to_le_bytes());
        let flags = [
            self.data_type as u8,
            self.dims.len() as u8,
            self.swizzle as u8,
        ];
        out.extend(flags);
        out.push(u8::from(self.nan_fill));
        out.extend(self.address.to_le_bytes());
        for at in 0..MAX_RANK {
            out.extend(self.dims.get(at).copied().unwrap_or(1).to_le_bytes());
        }
        for at in 0..MAX_RANK - 1 {
            out.extend(self.strides.get(at).copied().unwrap_or(0).to_le_bytes());
        }
        for at in 0..MAX_RANK {
            // At most 256.
            let size = self.box_dims.get(at).copied().unwrap_or(1);
            out.extend((size as u16).to_le_bytes());
        }
        for at in 0..MAX_RANK {
            // At most 8.
            out.push(self.element_strides.get(at).copied().unwrap_or(1) as u8);
        }
        let mut bytes = [0; BYTES];
        bytes[..out.len()].copy_from_slice(&out);
        bytes
    }

    /// Reads a map back; `None` for bytes that no [`TensorMap::encode`] wrote.
    pub fn decode(bytes: &[u8; BYTES]) -> Option<TensorMap> {
        let (head, rest) = bytes.split_at(8);
        if head[..4] != MAGIC.to_le_bytes() || head[7] > 1 {
            return None;
        }
        let rank = usize::from(head[5]);
        if !(1..=MAX_RANK).contains(&rank) {
            return None;
        }
        let mut words = rest[..80]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let address = words.next()?;
        let dims: Vec<u64> = words.by_ref().take(MAX_RANK).collect();
        let strides: Vec<u64> = words.collect();
        let sizes = rest[80..90].as_chunks::<2>().0;
        let map = TensorMap {
            data_type: DataType::from_number(head[4].into())?,
            address,
            dims: dims[..rank].to_vec(),
            strides: strides[..rank - 1].to_vec(),
            box_dims: sizes[..rank]
                .iter()
                .map(|size| u16::from_le_bytes(*size).into())
                .collect(),
            element_strides: rest[90..90 + rank]
                .iter()
                .map(|step| u32::from(*step))
                .collect(),
            swizzle: Swizzle::from_number(head[6].into())?,
            nan_fill: head[7] == 1,
        };
        map.check().ok()?;
        Some(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> TensorMap {
        TensorMap {
            data_type: DataType::Bfloat16,
            address: 0x1000_0000_0100,
            dims: vec![128, 65536],
            strides: vec![256],
            box_dims: vec![64, 128],
            element_strides: vec![1, 1],
            swizzle: Swizzle::Bytes128,
            nan_fill: false,
        }
    }

    #[test]
    fn a_map_survives_its_encoding() {
        let map = queue();
        map.check().unwrap();
        assert_eq!(TensorMap::decode(&map.encode()), Some(map));
        let five = TensorMap {
            data_type: DataType::Float32,
            dims: vec![8, 7, 6, 5, 1 << 32],
            strides: vec![32, 224, 1344, 6720],
            box_dims: vec![8, 1, 2, 3, 256],
            element_strides: vec![1, 2, 3, 4, 8],
            swizzle: Swizzle::None,
            nan_fill: true,
            ..queue()
        };
        five.check().unwrap();
        assert_eq!(TensorMap::decode(&five.encode()), Some(five));
    }

    #[test]
    fn bytes_that_are_no_map_are_refused() {
        assert_eq!(TensorMap::decode(&[0; BYTES]), None);
        for at in [0, 4, 5, 6, 7] {
            let mut bytes = queue().encode();
            bytes[at] = 0xFF;
            assert_eq!(TensorMap::decode(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn the_manuals_rules_are_enforced() {
        let broken = [
            TensorMap {
                address: 8,
                ..queue()
            },
            TensorMap {
                dims: vec![0, 65536],
                ..queue()
            },
            TensorMap {
                strides: vec![8],
                ..queue()
            },
            TensorMap {
                strides: vec![1 << 40],
                ..queue()
            },
            TensorMap {
                box_dims: vec![64, 257],
                ..queue()
            },
            TensorMap {
                box_dims: vec![4, 128],
                ..queue()
            },
            TensorMap {
                box_dims: vec![128, 128],
                ..queue()
            },
            TensorMap {
                element_strides: vec![1, 9],
                ..queue()
            },
            TensorMap {
                data_type: DataType::Uint16,
                nan_fill: true,
                ..queue()
            },
            TensorMap {
                dims: vec![],
                strides: vec![],
                ..queue()
            },
        ];
        for map in broken {
            assert!(map.check().is_err(), "{map:?}");
        }
    }
}
