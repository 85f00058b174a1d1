//! Module images: the fat-binary container that nvcc writes, and plain PTX text.
//!
//! A fat binary is a 16-byte header and a row of entries, each with its own header, kind (PTX or
//! machine code), architecture and payload. The real driver takes the machine code; softgpu takes
//! the PTX that suits the architecture it reports. The layout was read off nvcc 13.0's output.

use std::fmt;

/// What a fat binary begins with, as a little-endian word.
pub const FATBIN_MAGIC: u32 = 0xBA55_ED50;

const CONTAINER_HEADER: usize = 16;
const ENTRY_HEADER: usize = 64;
const KIND_PTX: u16 = 1;
const KIND_MACHINE_CODE: u16 = 2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
const FLAG_ARCH_SPECIFIC: u64 = 0x10_0000;

/// The architecture that softgpu reports: a compute capability.
///
/// It runs the arch-specific ("a") code of exactly that capability, as the hardware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    /// 9 in 9.0.
    pub major: u32,
    /// 0 in 9.0.
    pub minor: u32,
}

impl Arch {
    /// An A100's.
    pub const SM_80: Arch = Arch { major: 8, minor: 0 };
    /// An H100's.
    pub const SM_90: Arch = Arch { major: 9, minor: 0 };

    /// Reads `sm_80`, `sm_90` or `sm_90a`; the last two name the same device.
    pub fn parse(name: &str) -> Option<Arch> {
        match name {
            "sm_80" => Some(Arch::SM_80),
            "sm_90" | "sm_90a" => Some(Arch::SM_90),
            _ => None,
        }
    }

    /// 90 for 9.0, as fat binaries and PTX targets count.
    pub fn number(self) -> u32 {
        self.major * 10 + self.minor
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number())
    }
}

/// Why no PTX could be taken from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It is neither a fat binary, nor machine code, nor PTX text.
    Unrecognised,
    /// A fat binary whose structure contradicts itself; the text says where.
    Malformed(String),
    /// A sound image that holds no PTX for this architecture; the text says what it holds.
    NoPtx(String),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Unrecognised => {
                write!(
                    f,
                    "the image is neither a fat binary nor PTX text (which begins with `.version`)"
                )
            }
            ImageError::Malformed(what) => write!(f, "the fat binary is malformed: {what}"),
            ImageError::NoPtx(what) => {
                write!(f, "the image has no PTX that softgpu can run: {what}")
            }
        }
    }
}

impl std::error::Error for ImageError {}

/// The PTX of `image` that suits `arch`.
///
/// From a fat binary it is the highest architecture not above `arch`, arch-specific variants only
/// on an exact match.
pub fn ptx(image: &[u8], arch: Arch) -> Result<&str, ImageError> {
    if image.starts_with(&FATBIN_MAGIC.to_le_bytes()) {
        return from_fatbin(image, arch);
    }
    if image.starts_with(b"\x7fELF") {
        return Err(ImageError::NoPtx(
            "it is machine code alone (a cubin)".into(),
        ));
    }
    let text = text(image).ok_or(ImageError::Unrecognised)?;
    if !text.contains(".version") {
        return Err(ImageError::Unrecognised);
    }
    let target = text
        .split_once(".target")
        .map_or("", |(_, after)| after.trim_start());
    let (number, specific) = parse_target(target).ok_or(ImageError::Unrecognised)?;
    if number > arch.number() || (specific && number != arch.number()) {
        let suffix = if specific { "a" } else { "" };
        return Err(ImageError::NoPtx(format!(
            "it is for sm_{number}{suffix}, and this is {arch}"
        )));
    }
    Ok(text)
}

/// The architecture at the beginning of a `.target` list, and whether it is an "a" one.
fn parse_target(target: &str) -> Option<(u32, bool)> {
    let rest = target.strip_prefix("sm_")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    Some((
        rest[..digits].parse().ok()?,
        rest[digits..].starts_with('a'),
    ))
}

/// The length of the fat binary that begins with these bytes, from its header.
pub fn fatbin_len(header: &[u8; CONTAINER_HEADER]) -> Result<usize, ImageError> {
    let header_size = u16_at(header, 6).unwrap_or_default();
    if usize::from(header_size) < CONTAINER_HEADER {
        return Err(ImageError::Malformed(format!(
            "its header claims {header_size} bytes, {CONTAINER_HEADER} expected"
        )));
    }
    u64_at(header, 8)
        .and_then(|body| usize::try_from(body).ok())
        .and_then(|body| body.checked_add(usize::from(header_size)))
        .ok_or_else(|| ImageError::Malformed("its body is longer than the address space".into()))
}

fn from_fatbin(image: &[u8], arch: Arch) -> Result<&str, ImageError> {
    let header = image
        .first_chunk()
        .ok_or_else(|| ImageError::Malformed("it ends within its header".into()))?;
    let end = fatbin_len(header)?;
    if end > image.len() {
        return Err(ImageError::Malformed(format!(
            "its header announces {end} bytes, {} are there",
            image.len()
        )));
    }
    let mut at = usize::from(u16_at(image, 6).unwrap_or_default());
    let mut best: Option<(u32, bool, Entry<'_>)> = None;
    let mut held = Vec::new();
    while at < end {
        let entry = Entry::read(&image[at..end], at)?;
        at += entry.size;
        held.push(entry.describe());
        let exact = entry.arch == arch.number();
        let fits = exact || (entry.arch < arch.number() && !entry.arch_specific);
        if entry.kind != KIND_PTX || !fits {
            continue;
        }
        let rank = (entry.arch, entry.arch_specific);
        if best
            .as_ref()
            .is_none_or(|(arch, specific, _)| (*arch, *specific) < rank)
        {
            best = Some((rank.0, rank.1, entry));
        }
    }
    let Some((_, _, entry)) = best else {
        return Err(ImageError::NoPtx(format!(
            "for {arch} it would need PTX of that architecture or an earlier one; it holds {}",
            if held.is_empty() {
                "nothing".into()
            } else {
                held.join(", ")
            }
        )));
    };
    if entry.flags & (FLAG_LZ4 | FLAG_ZSTD) != 0 {
        return Err(ImageError::NoPtx(format!(
            "its {} is compressed; compile with --compress-mode=none",
            entry.describe()
        )));
    }
    text(entry.payload)
        .ok_or_else(|| ImageError::Malformed(format!("its {} is not text", entry.describe())))
}

struct Entry<'a> {
    kind: u16,
    arch: u32,
    arch_specific: bool,
    flags: u64,
    payload: &'a [u8],
    size: usize,
}

impl<'a> Entry<'a> {
    fn read(bytes: &'a [u8], at: usize) -> Result<Self, ImageError> {
        let malformed =
            |what: &str| ImageError::Malformed(format!("the entry at byte {at} {what}"));
        if bytes.len() < ENTRY_HEADER {
            return Err(malformed("ends within its header"));
        }
        // Every offset below lies within the 64 bytes just checked.
        let kind = u16_at(bytes, 0).unwrap_or_default();
        let header = u32_at(bytes, 4).unwrap_or_default() as usize;
        let payload = u64_at(bytes, 8).unwrap_or_default();
        let arch = u32_at(bytes, 28).unwrap_or_default();
        let flags = u64_at(bytes, 40).unwrap_or_default();
        if header < ENTRY_HEADER {
            return Err(malformed(&format!(
                "has a header of {header} bytes, 64 expected"
            )));
        }
        let size = usize::try_from(payload)
            .ok()
            .and_then(|payload| payload.checked_add(header))
            .filter(|size| *size <= bytes.len())
            .ok_or_else(|| malformed(&format!("announces {payload} bytes, more than there are")))?;
        Ok(Entry {
            kind,
            arch,
            arch_specific: flags & FLAG_ARCH_SPECIFIC != 0,
            flags,
            payload: &bytes[header..size],
            size,
        })
    }

    fn describe(&self) -> String {
        let suffix = if self.arch_specific { "a" } else { "" };
        match self.kind {
            KIND_PTX => format!("PTX for compute_{}{suffix}", self.arch),
            KIND_MACHINE_CODE => format!("machine code for sm_{}{suffix}", self.arch),
            other => format!("an entry of kind {other}"),
        }
    }
}

/// Text without the NUL bytes that end or pad it.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    if bytes[end..].iter().any(|byte| *byte != 0) {
        return None;
    }
    std::str::from_utf8(&bytes[..end]).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u16, arch: u32, flags: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY_HEADER];
        bytes[0..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&(ENTRY_HEADER as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes[28..32].copy_from_slice(&arch.to_le_bytes());
        bytes[40..48].copy_from_slice(&flags.to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut bytes = FATBIN_MAGIC.to_le_bytes().to_vec();
        bytes.extend(1u16.to_le_bytes());
        bytes.extend((CONTAINER_HEADER as u16).to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn sample() -> Vec<u8> {
        fatbin(&[
            entry(KIND_MACHINE_CODE, 90, FLAG_ARCH_SPECIFIC, b"machine"),
            entry(KIND_PTX, 80, 0, b".version 8.0 // 80\0\0"),
            entry(KIND_PTX, 90, 0, b".version 8.0 // 90\0"),
            entry(KIND_PTX, 90, FLAG_ARCH_SPECIFIC, b".version 8.0 // 90a\0"),
            entry(KIND_PTX, 100, 0, b".version 8.0 // 100\0"),
        ])
    }

    #[test]
    fn the_best_ptx_for_the_architecture_is_taken() {
        let image = sample();
        assert_eq!(ptx(&image, Arch::SM_90), Ok(".version 8.0 // 90a"));
        assert_eq!(ptx(&image, Arch::SM_80), Ok(".version 8.0 // 80"));
        let sm_89 = Arch { major: 8, minor: 9 };
        assert_eq!(ptx(&image, sm_89), Ok(".version 8.0 // 80"));
        let turing = Arch { major: 7, minor: 5 };
        let Err(ImageError::NoPtx(what)) = ptx(&image, turing) else {
            panic!()
        };
        assert!(
            what.contains("machine code for sm_90a, PTX for compute_80"),
            "{what}"
        );
    }

    #[test]
    fn plain_text_is_an_image_and_anything_else_is_not() {
        let text = b".version 8.0\n.target sm_80\n\0";
        assert_eq!(ptx(text, Arch::SM_90), Ok(".version 8.0\n.target sm_80\n"));
        let hopper = b".version 8.0\n.target sm_90a, debug\n";
        assert!(ptx(hopper, Arch::SM_90).is_ok());
        assert!(matches!(
            ptx(hopper, Arch::SM_80),
            Err(ImageError::NoPtx(_))
        ));
        assert_eq!(
            ptx(b".version 8.0", Arch::SM_90),
            Err(ImageError::Unrecognised)
        );
        assert_eq!(ptx(b"hello", Arch::SM_90), Err(ImageError::Unrecognised));
        assert_eq!(ptx(b"", Arch::SM_90), Err(ImageError::Unrecognised));
        assert!(matches!(
            ptx(b"\x7fELF\x02", Arch::SM_90),
            Err(ImageError::NoPtx(_))
        ));
    }

    #[test]
    fn compressed_ptx_is_refused_with_the_remedy() {
        let image = fatbin(&[entry(KIND_PTX, 80, FLAG_LZ4, b"\x28\xb5")]);
        let error = ptx(&image, Arch::SM_80).unwrap_err();
        assert!(error.to_string().contains("--compress-mode=none"));
    }

    #[test]
    fn damaged_containers_give_an_error() {
        let image = sample();
        for len in 0..image.len() {
            assert!(ptx(&image[..len], Arch::SM_90).is_err(), "{len} bytes");
        }
        for at in 0..image.len() {
            for bit in 0..8 {
                let mut damaged = image.clone();
                damaged[at] ^= 1 << bit;
                // Any answer will do, as long as there is one.
                let _ = ptx(&damaged, Arch::SM_90);
            }
        }
    }
}
