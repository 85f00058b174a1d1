//! Files of recorded answers.

use std::collections::BTreeMap;
use std::fmt;

const MAGIC: &[u8; 8] = b"sgvec\x001\n";

/// The recorded answer to one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// [`Form::digest`](super::Form::digest) at the time of the recording.
    pub digest: u64,
    /// The output words.
    pub words: Vec<u32>,
}

/// What one device answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vectors {
    /// The device's name and driver.
    pub device: String,
    /// By the names of the forms.
    pub forms: BTreeMap<String, Vector>,
}

/// Bytes that are no file of vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorsError(&'static str);

impl fmt::Display for VectorsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a file of conformance vectors: {}", self.0)
    }
}

impl std::error::Error for VectorsError {}

impl Vectors {
    /// The bytes of a file: a magic number, the device, then each form's name, digest and words,
    /// texts and words with a 32-bit count before them, all little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        text(&mut bytes, &self.device);
        for (name, vector) in &self.forms {
            text(&mut bytes, name);
            bytes.extend(vector.digest.to_le_bytes());
            bytes.extend((vector.words.len() as u32).to_le_bytes());
            bytes.extend(vector.words.iter().flat_map(|word| word.to_le_bytes()));
        }
        bytes
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// If they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, VectorsError> {
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(VectorsError("its first bytes are wrong"))?;
        let device = take_text(&mut rest)?;
        let mut forms = BTreeMap::new();
        while !rest.is_empty() {
            let name = take_text(&mut rest)?;
            let digest = take(&mut rest, 8)?;
            let digest = digest
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte));
            let count = take_count(&mut rest)?;
            let words = take(&mut rest, count.checked_mul(4).ok_or(TOO_SHORT)?)?;
            let words = words
                .as_chunks()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word))
                .collect();
            forms.insert(name, Vector { digest, words });
        }
        Ok(Self { device, forms })
    }
}

const TOO_SHORT: VectorsError = VectorsError("it ends too early");

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], VectorsError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(TOO_SHORT)?;
    *rest = left;
    Ok(taken)
}

fn take_count(rest: &mut &[u8]) -> Result<usize, VectorsError> {
    let bytes = take(rest, 4)?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |all, byte| all << 8 | usize::from(*byte)))
}

fn take_text(rest: &mut &[u8]) -> Result<String, VectorsError> {
    let count = take_count(rest)?;
    let bytes = take(rest, count)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| VectorsError("a text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_survive_and_damage_is_noticed() {
        let mut vectors = Vectors {
            device: "a GPU".into(),
            ..Vectors::default()
        };
        let vector = Vector {
            digest: 0x0123_4567_89ab_cdef,
            words: vec![1, 2, u32::MAX],
        };
        vectors.forms.insert("add.s32".into(), vector.clone());
        vectors.forms.insert(
            "nothing".into(),
            Vector {
                words: Vec::new(),
                ..vector
            },
        );
        let bytes = vectors.encode();
        assert_eq!(Vectors::decode(&bytes), Ok(vectors));
        for length in 0..bytes.len() {
            // A file may end between two forms: nothing tells how many there should be.
            if let Ok(part) = Vectors::decode(&bytes[..length]) {
                assert!(part.forms.len() < 2);
            }
        }
        assert!(Vectors::decode(b"something else").is_err());
    }
}
