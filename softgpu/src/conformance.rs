//! Conformance with a GPU: one tiny kernel for each form of a PTX instruction.
//!
//! [`forms`] generates the kernels. The example program `conformance` runs them with random inputs
//! on whatever GPU is there and writes what it answered, a [`Vectors`] file; the test
//! `conformance` replays the files in `tests/conformance/` on softgpu. Only this catches a layout
//! that the kernels and the interpreter get wrong together.
//!
//! Inputs follow from the form's name alone, so that a file holds outputs and a digest only.

mod copies;
mod input;
mod matrix;
mod scalar;
mod vectors;
mod warp;

pub use input::Input;
pub use vectors::{Vector, Vectors, VectorsError};

use crate::tensor_map::TensorMap;

/// The lowest architecture that has a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `sm_80`
    Sm80,
    /// `sm_90a`
    Sm90a,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }
}

/// How far two answers may differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// Not at all.
    Bits,
    /// In the payload of NaNs, for f64 in pairs of words: PTX leaves it open.
    Double,
    /// By the larger of a relative and an absolute error: the bound that the PTX ISA documents for
    /// the instruction, and half a unit in the last place for softgpu's own rounding.
    Approximate {
        /// The type of the numbers in a word.
        number: Number,
        /// Relative to the recorded value.
        relative: f64,
        /// Absolute.
        absolute: f64,
    },
    /// By the rounding of a sum of `terms` products, truncated or not, in any order:
    /// `terms · 2⁻²² · Σ|products|`, where a run with the signs cleared gives the sum.
    Sum {
        /// Products in a sum, and the addend.
        terms: u32,
    },
}

/// Numbers in a 32-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// One f32.
    F32,
    /// Two f16.
    F16,
    /// Two bf16.
    Bf16,
}

impl Number {
    fn values(self, word: u32) -> [f64; 2] {
        use crate::number::{BF16, F16, F32};
        match self {
            Self::F32 => [F32.decode(word), 0.0],
            Self::F16 => [F16.decode(word & 0xffff), F16.decode(word >> 16)],
            Self::Bf16 => [BF16.decode(word & 0xffff), BF16.decode(word >> 16)],
        }
    }
}

/// One form: a kernel `form(input, output)` or `form(input, output, map)`, and how to run it.
///
/// Word w of thread t (of T in the grid) lies at index w·T + t of the input and of the output.
#[derive(Clone, Debug)]
pub struct Form {
    /// The instruction with its modifiers, and what else tells the form from others.
    pub name: String,
    /// The architecture that it needs.
    pub target: Target,
    /// The whole module.
    pub ptx: String,
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// What each thread's input words are drawn from.
    pub inputs: Vec<Input>,
    /// Output words of a thread.
    pub outputs: u32,
    /// How the answers are compared.
    pub agreement: Agreement,
    /// A tensor map, passed as the third parameter, over the input: its address is to be filled in.
    pub map: Option<TensorMap>,
}

impl Form {
    /// Threads of the grid.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.blocks * self.threads
    }

    /// The input words.
    #[must_use]
    pub fn input(&self) -> Vec<u32> {
        let mut draw = input::Draw::new(&self.name);
        let total = self.total();
        self.inputs
            .iter()
            .flat_map(|input| (0..total).map(|_| draw.word(*input)).collect::<Vec<_>>())
            .collect()
    }

    /// The input of the run that gives the scale of [`Agreement::Sum`]: signs cleared.
    #[must_use]
    pub fn scale_input(&self) -> Option<Vec<u32>> {
        let Agreement::Sum { .. } = self.agreement else {
            return None;
        };
        let total = self.total() as usize;
        let clear = |(at, word): (usize, u32)| word & self.inputs[at / total].magnitude_mask();
        Some(self.input().into_iter().enumerate().map(clear).collect())
    }

    /// A digest of everything that determines the answer.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let map = self.map.as_ref().map(|map| {
            TensorMap {
                address: 0,
                ..map.clone()
            }
            .encode()
        });
        let input = self.input();
        let words = input.iter().flat_map(|word| word.to_le_bytes());
        let bytes = self
            .ptx
            .bytes()
            .chain(words)
            .chain(map.into_iter().flatten());
        input::digest(
            bytes
                .chain(self.blocks.to_le_bytes())
                .chain(self.threads.to_le_bytes()),
        )
    }

    /// Compares a recorded answer with a replayed one; `scale` is the answer to `scale_input`.
    ///
    /// # Errors
    /// A sentence about the first word that differs.
    pub fn compare(
        &self,
        recorded: &[u32],
        replayed: &[u32],
        scale: Option<&[u32]>,
    ) -> Result<(), String> {
        if recorded.len() != replayed.len() {
            return Err(format!(
                "{} words recorded, {} now",
                recorded.len(),
                replayed.len()
            ));
        }
        let total = self.total() as usize;
        for (at, (&old, &new)) in recorded.iter().zip(replayed).enumerate() {
            let agree = old == new
                || match self.agreement {
                    Agreement::Bits => false,
                    Agreement::Double => {
                        // Words 2i and 2i + 1 of a thread are the halves of a double.
                        let pair = at / total / 2 * 2 * total + at % total;
                        let double = |words: &[u32]| {
                            let high = words.get(pair + total).copied().unwrap_or(0);
                            f64::from_bits(u64::from(high) << 32 | u64::from(words[pair]))
                        };
                        double(recorded).is_nan() && double(replayed).is_nan()
                    }
                    Agreement::Approximate {
                        number,
                        relative,
                        absolute,
                    } => {
                        let pairs = number.values(old).into_iter().zip(number.values(new));
                        pairs.into_iter().all(|(old, new)| {
                            old == new
                                || old.is_nan() && new.is_nan()
                                || old.is_finite()
                                    && (old - new).abs() <= absolute.max(relative * old.abs())
                        })
                    }
                    Agreement::Sum { terms } => {
                        let magnitude = scale
                            .and_then(|scale| scale.get(at))
                            .map_or(0, |bits| *bits);
                        let bound = f64::from(terms)
                            * 2_f64.powi(-22)
                            * f64::from(f32::from_bits(magnitude));
                        let difference =
                            f64::from(f32::from_bits(old)) - f64::from(f32::from_bits(new));
                        difference.abs() <= bound
                    }
                };
            if !agree {
                let input = self.input();
                let words = (0..self.inputs.len().min(4)).map(|w| input[w * total + at % total]);
                return Err(format!(
                    "word {} of thread {}: recorded {old:#010x}, now {new:#010x} (inputs {:x?})",
                    at / total,
                    at % total,
                    words.collect::<Vec<_>>(),
                ));
            }
        }
        Ok(())
    }
}

/// Every form that is checked.
#[must_use]
pub fn forms() -> Vec<Form> {
    let mut forms = scalar::forms();
    forms.extend(warp::forms());
    forms.extend(matrix::forms());
    forms.extend(copies::forms());
    forms
}

/// The text of a module around the body of a kernel.
///
/// The body finds its input words in `%i0`…, leaves its output words in `%o0`…, and may use the
/// scratch registers `%h` (16 bits), `%t` (32), `%l` (64) and `%p` (predicates), and the thread's
/// number in its block in `%thread`.
fn module(
    target: Target,
    (inputs, outputs): (usize, u32),
    total: u32,
    (declarations, parameters): (&str, &str),
    body: &str,
) -> String {
    use std::fmt::Write;
    let mut text = format!(
        ".version 8.0\n.target {}\n.address_size 64\n{declarations}\
         .visible .entry form(.param .u64 input, .param .u64 output{parameters})\n{{\n\
         .reg .b16 %h<8>;\n.reg .b32 %t<16>;\n.reg .b64 %l<16>;\n.reg .pred %p<8>;\n\
         .reg .b32 %i<{}>;\n.reg .b32 %o<{}>;\n\
         .reg .b32 %thread;\n.reg .b32 %index;\n.reg .b64 %in;\n.reg .b64 %out;\n.reg .b64 %at;\n\
         ld.param.u64 %in, [input];\nld.param.u64 %out, [output];\n\
         cvta.to.global.u64 %in, %in;\ncvta.to.global.u64 %out, %out;\n\
         mov.u32 %thread, %tid.x;\nmov.u32 %index, %ctaid.x;\nmov.u32 %t0, %ntid.x;\n\
         mad.lo.s32 %index, %index, %t0, %thread;\nmul.wide.u32 %at, %index, 4;\n\
         add.s64 %in, %in, %at;\nadd.s64 %out, %out, %at;\n",
        target.name(),
        inputs.max(1),
        outputs.max(1),
    );
    for word in 0..inputs {
        let _ = writeln!(
            text,
            "ld.global.b32 %i{word}, [%in+{}];",
            word * total as usize * 4
        );
    }
    text.push_str(body);
    for word in 0..outputs {
        let _ = writeln!(
            text,
            "st.global.b32 [%out+{}], %o{word};",
            u64::from(word * total) * 4
        );
    }
    text.push_str("ret;\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_inputs_reproducible() {
        let mut names = HashSet::new();
        for form in forms() {
            assert!(names.insert(form.name.clone()), "{} twice", form.name);
            assert_eq!(form.input(), form.input());
            assert_eq!(
                form.input().len(),
                form.inputs.len() * form.total() as usize
            );
        }
        assert!(names.len() > 200, "{} forms", names.len());
    }

    fn form(agreement: Agreement) -> Form {
        Form {
            name: "test".into(),
            target: Target::Sm80,
            ptx: String::new(),
            blocks: 1,
            threads: 1,
            inputs: vec![Input::Word],
            outputs: 2,
            agreement,
            map: None,
        }
    }

    #[test]
    fn agreements_are_as_strict_as_they_say() {
        let bits = form(Agreement::Bits);
        assert!(bits.compare(&[1, 2], &[1, 2], None).is_ok());
        assert!(
            bits.compare(&[1, 2], &[1, 3], None)
                .unwrap_err()
                .contains("word 1")
        );
        assert!(bits.compare(&[1, 2], &[1], None).is_err());

        let double = form(Agreement::Double);
        assert!(
            double
                .compare(&[1, 0x7ff8_0000], &[0, 0x7fff_ffff], None)
                .is_ok()
        );
        assert!(
            double
                .compare(&[1, 0x3ff8_0000], &[0, 0x3ff8_0000], None)
                .is_err()
        );

        let near = form(Agreement::Approximate {
            number: Number::F32,
            relative: 1e-6,
            absolute: 1e-9,
        });
        let one = 1_f32.to_bits();
        assert!(near.compare(&[one, 0], &[one + 8, 0], None).is_ok());
        assert!(near.compare(&[one, 0], &[one + 9, 0], None).is_err());
        assert!(
            near.compare(&[0, 0], &[1e-10_f32.to_bits(), 0], None)
                .is_ok()
        );
        assert!(
            near.compare(&[0x7f80_0000, 0], &[0x7f7f_ffff, 0], None)
                .is_err()
        );
        assert!(
            near.compare(&[0x7fff_ffff, 0], &[0x7fc0_0000, 0], None)
                .is_ok()
        );

        let sum = form(Agreement::Sum { terms: 2 });
        let scale = [4_f32.to_bits(), 0];
        assert!(sum.compare(&[one, 0], &[one + 16, 0], Some(&scale)).is_ok());
        assert!(
            sum.compare(&[one, 0], &[one + 17, 0], Some(&scale))
                .is_err()
        );
    }

    #[test]
    fn digests_depend_on_the_kernel_and_its_launch() {
        let plain = form(Agreement::Bits);
        let other = Form {
            ptx: "ret;".into(),
            ..plain.clone()
        };
        let wider = Form {
            threads: 2,
            ..plain.clone()
        };
        assert_eq!(plain.digest(), form(Agreement::Double).digest());
        assert_ne!(plain.digest(), other.digest());
        assert_ne!(plain.digest(), wider.digest());
    }
}
