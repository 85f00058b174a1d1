//! Forms in which every thread computes for itself.

use std::fmt::Write;

use super::{Agreement, Form, Input, Number, Target, module};

/// Blocks of one warp: 128 samples a form.
const BLOCKS: u32 = 4;

/// An instruction and its operands, as `destination=sources` in letters, with what follows them:
///
/// | | |
/// |---|---|
/// | `w` `n` `s` | a 32-bit word: any, not zero, small |
/// | `f` `m` | an f32: any, moderate |
/// | `x` `b` | a pair of f16, of bf16 |
/// | `h` `y` `c` | 16 bits: any, an f16, a bf16 |
/// | `l` `k` `d` | 64 bits: any, not zero, an f64 |
/// | `p` | a predicate |
type Row = (&'static str, &'static str);

/// Exact: integers, and floating point that IEEE 754 determines.
const EXACT: &[Row] = &[
    ("add.s32", "w=ww"),
    ("add.sat.s32", "w=ww"),
    ("add.s64", "l=ll"),
    ("add.s16", "h=hh"),
    ("sub.s32", "w=ww"),
    ("sub.sat.s32", "w=ww"),
    ("sub.s64", "l=ll"),
    ("mul.lo.s32", "w=ww"),
    ("mul.hi.s32", "w=ww"),
    ("mul.hi.u32", "w=ww"),
    ("mul.wide.s32", "l=ww"),
    ("mul.wide.u32", "l=ww"),
    ("mul.wide.s16", "w=hh"),
    ("mul.wide.u16", "w=hh"),
    ("mul.lo.u16", "h=hh"),
    ("mul.lo.s64", "l=ll"),
    ("mul.hi.s64", "l=ll"),
    ("mul.hi.u64", "l=ll"),
    ("mad.lo.s32", "w=www"),
    ("mad.hi.u32", "w=www"),
    ("mad.wide.u32", "l=wwl"),
    ("mad.wide.s32", "l=wwl"),
    ("mad.lo.s64", "l=lll"),
    ("sad.s32", "w=www"),
    ("sad.u32", "w=www"),
    ("div.s32", "w=wn"),
    ("div.u32", "w=wn"),
    ("rem.u32", "w=wn"),
    ("div.u64", "l=lk"),
    ("rem.u64", "l=lk"),
    ("abs.s32", "w=w"),
    ("neg.s32", "w=w"),
    ("neg.s64", "l=l"),
    ("min.s32", "w=ww"),
    ("max.u32", "w=ww"),
    ("min.u64", "l=ll"),
    ("max.s64", "l=ll"),
    ("popc.b32", "w=w"),
    ("popc.b64", "w=l"),
    ("clz.b32", "w=w"),
    ("clz.b64", "w=l"),
    ("bfind.u32", "w=w"),
    ("bfind.s32", "w=w"),
    ("bfind.shiftamt.u32", "w=w"),
    ("bfind.u64", "w=l"),
    ("brev.b32", "w=w"),
    ("brev.b64", "l=l"),
    ("bfe.u32", "w=wss"),
    ("bfe.s32", "w=wss"),
    ("bfe.u64", "l=lss"),
    ("bfe.s64", "l=lss"),
    ("bfi.b32", "w=wwss"),
    ("bfi.b64", "l=llss"),
    ("bmsk.clamp.b32", "w=ss"),
    ("bmsk.wrap.b32", "w=ss"),
    ("dp4a.s32.s32", "w=www"),
    ("dp4a.u32.u32", "w=www"),
    ("prmt.b32", "w=www"),
    ("prmt.b32.f4e", "w=wws"),
    ("prmt.b32.b4e", "w=wws"),
    ("prmt.b32.rc8", "w=wws"),
    ("prmt.b32.ecl", "w=wws"),
    ("prmt.b32.ecr", "w=wws"),
    ("prmt.b32.rc16", "w=wws"),
    ("shf.l.wrap.b32", "w=wws"),
    ("shf.l.clamp.b32", "w=wws"),
    ("shf.r.wrap.b32", "w=wws"),
    ("shf.r.clamp.b32", "w=wws"),
    ("shl.b32", "w=ws"),
    ("shr.u32", "w=ws"),
    ("shr.s32", "w=ws"),
    ("shl.b64", "l=ls"),
    ("shr.u64", "l=ls"),
    ("shr.s64", "l=ls"),
    ("shl.b16", "h=hs"),
    ("shr.s16", "h=hs"),
    ("and.b32", "w=ww"),
    ("or.b64", "l=ll"),
    ("xor.b16", "h=hh"),
    ("not.b32", "w=w"),
    ("cnot.b32", "w=w"),
    ("lop3.b32", "w=www, 0x96"),
    ("lop3.b32", "w=www, 0xe2"),
    ("slct.s32.s32", "w=www"),
    ("slct.s32.f32", "w=wwf"),
    // Conversions.
    ("cvt.rni.s32.f32", "w=f"),
    ("cvt.rzi.s32.f32", "w=f"),
    ("cvt.rmi.s32.f32", "w=f"),
    ("cvt.rpi.s32.f32", "w=f"),
    ("cvt.rni.ftz.s32.f32", "w=f"),
    ("cvt.rni.u32.f32", "w=f"),
    ("cvt.rzi.u32.f32", "w=f"),
    ("cvt.rzi.s64.f32", "l=f"),
    ("cvt.rzi.u64.f32", "l=f"),
    ("cvt.rzi.s32.f64", "w=d"),
    ("cvt.rzi.u32.f64", "w=d"),
    ("cvt.rzi.s64.f64", "l=d"),
    ("cvt.rpi.u64.f64", "l=d"),
    ("cvt.rni.s32.f16", "w=y"),
    ("cvt.rn.f32.s32", "w=w"),
    ("cvt.rz.f32.s32", "w=w"),
    ("cvt.rm.f32.u32", "w=w"),
    ("cvt.rp.f32.u32", "w=w"),
    ("cvt.rn.f32.s64", "w=l"),
    ("cvt.rz.f32.u64", "w=l"),
    ("cvt.rn.f64.s32", "l=w"),
    ("cvt.rn.f64.s64", "l=l"),
    ("cvt.rz.f64.u64", "l=l"),
    ("cvt.rn.f16.s32", "h=w"),
    ("cvt.rn.f32.f64", "w=d"),
    ("cvt.rz.f32.f64", "w=d"),
    ("cvt.rm.f32.f64", "w=d"),
    ("cvt.rp.f32.f64", "w=d"),
    ("cvt.rni.f32.f32", "w=f"),
    ("cvt.rzi.f32.f32", "w=f"),
    ("cvt.rmi.f32.f32", "w=f"),
    ("cvt.rpi.f32.f32", "w=f"),
    ("cvt.sat.f32.f32", "w=f"),
    ("cvt.rn.f16.f32", "h=f"),
    ("cvt.rz.f16.f32", "h=f"),
    ("cvt.rn.relu.f16.f32", "h=f"),
    ("cvt.rn.bf16.f32", "h=f"),
    ("cvt.rz.bf16.f32", "h=f"),
    ("cvt.rn.relu.bf16.f32", "h=f"),
    ("cvt.rn.f16x2.f32", "w=ff"),
    ("cvt.rz.f16x2.f32", "w=ff"),
    ("cvt.rn.bf16x2.f32", "w=ff"),
    ("cvt.rn.relu.bf16x2.f32", "w=ff"),
    ("cvt.rna.tf32.f32", "w=f"),
    ("cvt.f32.f16", "w=y"),
    ("cvt.s32.s8", "w=w"),
    ("cvt.s32.s16", "w=h"),
    ("cvt.u32.u16", "w=h"),
    ("cvt.s64.s32", "l=w"),
    ("cvt.u64.u32", "l=w"),
    ("cvt.u32.u64", "w=l"),
    ("cvt.sat.s16.s32", "h=w"),
    ("cvt.sat.u16.s32", "h=w"),
    // f32.
    ("add.rn.f32", "w=ff"),
    ("add.rz.f32", "w=ff"),
    ("add.rm.f32", "w=ff"),
    ("add.rp.f32", "w=ff"),
    ("add.ftz.f32", "w=ff"),
    ("add.sat.f32", "w=ff"),
    ("sub.rn.f32", "w=ff"),
    ("sub.rz.f32", "w=ff"),
    ("mul.rn.f32", "w=ff"),
    ("mul.rz.f32", "w=ff"),
    ("mul.rm.f32", "w=ff"),
    ("mul.rp.f32", "w=ff"),
    ("mul.ftz.f32", "w=ff"),
    ("mul.sat.f32", "w=ff"),
    ("fma.rn.f32", "w=fff"),
    ("fma.rz.f32", "w=fff"),
    ("fma.rm.f32", "w=fff"),
    ("fma.rp.f32", "w=fff"),
    ("fma.rn.ftz.f32", "w=fff"),
    ("fma.rn.sat.f32", "w=fff"),
    ("div.rn.f32", "w=ff"),
    ("div.rz.f32", "w=ff"),
    ("div.rm.f32", "w=ff"),
    ("div.rp.f32", "w=ff"),
    ("rcp.rn.f32", "w=f"),
    ("rcp.rz.f32", "w=f"),
    ("sqrt.rn.f32", "w=f"),
    ("sqrt.rz.f32", "w=f"),
    ("sqrt.rp.f32", "w=f"),
    ("min.f32", "w=ff"),
    ("max.f32", "w=ff"),
    ("min.ftz.f32", "w=ff"),
    ("max.NaN.f32", "w=ff"),
    ("abs.f32", "w=f"),
    ("neg.f32", "w=f"),
    ("copysign.f32", "w=ff"),
    ("testp.finite.f32", "p=f"),
    ("testp.notanumber.f32", "p=f"),
    ("testp.normal.f32", "p=f"),
    ("setp.lt.f32", "p=ff"),
    ("setp.leu.f32", "p=ff"),
    ("setp.neu.f32", "p=ff"),
    ("setp.eq.ftz.f32", "p=ff"),
    ("setp.num.f32", "p=ff"),
    ("setp.nan.f32", "p=ff"),
    ("setp.gt.s32", "p=ww"),
    ("setp.hs.u32", "p=ww"),
    ("setp.lt.s64", "p=ll"),
    ("setp.ge.f64", "p=dd"),
    ("setp.lt.f16", "p=yy"),
    ("set.lt.f32.f32", "w=ff"),
    ("set.ne.u32.s32", "w=ww"),
    // f16 and bf16.
    ("add.f16", "h=yy"),
    ("add.f16x2", "w=xx"),
    ("add.ftz.f16x2", "w=xx"),
    ("add.sat.f16x2", "w=xx"),
    ("sub.f16x2", "w=xx"),
    ("mul.f16x2", "w=xx"),
    ("fma.rn.f16", "h=yyy"),
    ("fma.rn.f16x2", "w=xxx"),
    ("fma.rn.relu.f16x2", "w=xxx"),
    ("neg.f16x2", "w=x"),
    ("abs.f16x2", "w=x"),
    ("min.f16x2", "w=xx"),
    ("max.NaN.f16x2", "w=xx"),
    ("fma.rn.bf16", "h=ccc"),
    ("fma.rn.bf16x2", "w=bbb"),
    ("fma.rn.relu.bf16x2", "w=bbb"),
    ("neg.bf16x2", "w=b"),
    ("abs.bf16x2", "w=b"),
    ("min.bf16x2", "w=bb"),
    ("max.NaN.bf16x2", "w=bb"),
];

/// Exact, from sm_90 on.
const EXACT_90: &[Row] = &[
    ("add.bf16x2", "w=bb"),
    ("sub.bf16x2", "w=bb"),
    ("mul.bf16x2", "w=bb"),
    ("cvt.f32.bf16", "w=c"),
    ("cvt.rn.satfinite.e4m3x2.f32", "h=ff"),
    ("cvt.rn.satfinite.e5m2x2.f32", "h=ff"),
    ("cvt.rn.f16x2.e4m3x2", "w=h"),
    ("cvt.rn.f16x2.e5m2x2", "w=h"),
];

/// f64: exact but for the payload of NaNs.
const DOUBLE: &[Row] = &[
    ("add.rn.f64", "l=dd"),
    ("sub.rn.f64", "l=dd"),
    ("mul.rn.f64", "l=dd"),
    ("fma.rn.f64", "l=ddd"),
    ("div.rn.f64", "l=dd"),
    ("rcp.rn.f64", "l=d"),
    ("sqrt.rn.f64", "l=d"),
    ("min.f64", "l=dd"),
    ("max.f64", "l=dd"),
    ("abs.f64", "l=d"),
    ("neg.f64", "l=d"),
    ("cvt.f64.f32", "l=f"),
    ("cvt.rni.f64.f64", "l=d"),
    ("cvt.rmi.f64.f64", "l=d"),
];

/// Half a unit in the last place of an f32, relative: softgpu's own rounding.
const HALF_ULP: f64 = 1.0 / (1 << 24) as f64;
/// One unit in the last place of an f32, relative, at most.
const ULP: f64 = 1.0 / (1 << 23) as f64;

/// An approximation, and the bounds of the PTX ISA: relative, absolute.
type Bounded = (&'static str, &'static str, Number, f64, f64);

const APPROXIMATE: &[Bounded] = &[
    (
        "ex2.approx.f32",
        "w=f",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "ex2.approx.ftz.f32",
        "w=m",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "lg2.approx.f32",
        "w=f",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        2.0 * ULP,
    ),
    (
        "lg2.approx.ftz.f32",
        "w=f",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        2.0 * ULP,
    ),
    (
        "rcp.approx.ftz.f32",
        "w=f",
        Number::F32,
        ULP + HALF_ULP,
        0.0,
    ),
    (
        "rsqrt.approx.ftz.f32",
        "w=f",
        Number::F32,
        1.08 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "rsqrt.approx.f32",
        "w=f",
        Number::F32,
        1.08 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "sqrt.approx.ftz.f32",
        "w=f",
        Number::F32,
        ULP + HALF_ULP,
        0.0,
    ),
    ("sqrt.approx.f32", "w=f", Number::F32, ULP + HALF_ULP, 0.0),
    (
        "div.approx.f32",
        "w=mm",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "div.full.f32",
        "w=mm",
        Number::F32,
        2.0 * ULP + HALF_ULP,
        0.0,
    ),
    (
        "tanh.approx.f32",
        "w=f",
        Number::F32,
        4096.0 * ULP + HALF_ULP,
        0.0,
    ),
    ("ex2.approx.f16x2", "w=x", Number::F16, 3.0 / 1024.0, 0.0),
    ("tanh.approx.f16x2", "w=x", Number::F16, 3.0 / 1024.0, 6e-8),
];

/// Approximations from sm_90 on.
const APPROXIMATE_90: &[Bounded] = &[
    (
        "ex2.approx.ftz.bf16x2",
        "w=b",
        Number::Bf16,
        3.0 / 128.0,
        0.0,
    ),
    ("tanh.approx.bf16x2", "w=b", Number::Bf16, 3.0 / 128.0, 0.0),
];

pub(super) fn forms() -> Vec<Form> {
    let exact = EXACT
        .iter()
        .map(|row| form(*row, Target::Sm80, Agreement::Bits));
    let newer = EXACT_90
        .iter()
        .map(|row| form(*row, Target::Sm90a, Agreement::Bits));
    let double = DOUBLE
        .iter()
        .map(|row| form(*row, Target::Sm80, Agreement::Double));
    let approximate = APPROXIMATE.iter().map(|row| bounded(*row, Target::Sm80));
    let newer_approximate = APPROXIMATE_90
        .iter()
        .map(|row| bounded(*row, Target::Sm90a));
    exact
        .chain(newer)
        .chain(double)
        .chain(approximate)
        .chain(newer_approximate)
        .collect()
}

fn bounded((name, operands, number, relative, absolute): Bounded, target: Target) -> Form {
    form(
        (name, operands),
        target,
        Agreement::Approximate {
            number,
            relative,
            absolute,
        },
    )
}

fn form((name, operands): Row, target: Target, agreement: Agreement) -> Form {
    let (signature, rest) = operands.split_once(',').unwrap_or((operands, ""));
    let (destination, sources) = signature.split_once('=').unwrap_or((signature, ""));
    let mut inputs = Vec::new();
    let mut body = String::new();
    let mut arguments = Vec::new();
    for (number, letter) in sources.chars().enumerate() {
        let word = inputs.len();
        match letter {
            'h' | 'y' | 'c' => {
                inputs.push(match letter {
                    'y' => Input::Halves,
                    'c' => Input::Brains,
                    _ => Input::Word,
                });
                let _ = writeln!(body, "cvt.u16.u32 %h{}, %i{word};", number + 1);
                arguments.push(format!("%h{}", number + 1));
            }
            'l' | 'k' | 'd' => {
                inputs.extend(match letter {
                    'd' => [Input::Word, Input::DoubleHigh],
                    'k' => [Input::NonZero, Input::Word],
                    _ => [Input::Word, Input::Word],
                });
                let _ = writeln!(
                    body,
                    "mov.b64 %l{}, {{%i{word}, %i{}}};",
                    number + 1,
                    word + 1
                );
                arguments.push(format!("%l{}", number + 1));
            }
            _ => {
                inputs.push(match letter {
                    'n' => Input::NonZero,
                    's' => Input::Small,
                    'f' => Input::Float,
                    'm' => Input::Moderate,
                    'x' => Input::Halves,
                    'b' => Input::Brains,
                    _ => Input::Word,
                });
                arguments.push(format!("%i{word}"));
            }
        }
    }
    if !rest.is_empty() {
        arguments.push(rest.trim().into());
    }
    let arguments = arguments.join(", ");
    let (result, store) = match destination {
        "h" => ("%h0", "cvt.u32.u16 %o0, %h0;\n"),
        "l" => ("%l0", "mov.b64 {%o0, %o1}, %l0;\n"),
        "p" => ("%p0", "selp.b32 %o0, 1, 0, %p0;\n"),
        _ => ("%o0", ""),
    };
    let _ = write!(body, "{} {result}, {arguments};\n{store}", name.trim());
    let outputs = if destination == "l" { 2 } else { 1 };
    let ptx = module(
        target,
        (inputs.len(), outputs),
        BLOCKS * 32,
        ("", ""),
        &body,
    );
    let name = if rest.is_empty() {
        name.into()
    } else {
        format!("{}{rest}", name.trim())
    };
    Form {
        name,
        target,
        ptx,
        blocks: BLOCKS,
        threads: 32,
        inputs,
        outputs,
        agreement,
        map: None,
    }
}
