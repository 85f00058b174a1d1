//! Forms in which the lanes of a warp exchange values.

use super::{Agreement, Form, Input, Target, module};

const BLOCKS: u32 = 4;

/// A name, the instruction on `%i…` and `%o…`, the inputs and the number of outputs.
type Row = (&'static str, &'static str, &'static [Input], u32);

use Input::{Small, Word};

const ROWS: &[Row] = &[
    (
        "vote.sync.all.pred",
        "setp.gt.s32 %p0, %i0, -9; vote.sync.all.pred %p1, %p0, -1;\nselp.b32 %o0, 1, 0, %p1;",
        &[Small],
        1,
    ),
    (
        "vote.sync.any.pred",
        "setp.eq.s32 %p0, %i0, 5; vote.sync.any.pred %p1, %p0, -1;\nselp.b32 %o0, 1, 0, %p1;",
        &[Small],
        1,
    ),
    (
        "vote.sync.uni.pred",
        "setp.gt.s32 %p0, %i0, 78; vote.sync.uni.pred %p1, %p0, -1;\nselp.b32 %o0, 1, 0, %p1;",
        &[Small],
        1,
    ),
    (
        "vote.sync.ballot.b32",
        "setp.gt.s32 %p0, %i0, 40; vote.sync.ballot.b32 %o0, %p0, -1;",
        &[Small],
        1,
    ),
    (
        "match.any.sync.b32",
        "shr.u32 %t0, %i0, 4; match.any.sync.b32 %o0, %t0, -1;",
        &[Small],
        1,
    ),
    (
        "match.any.sync.b64",
        "shr.u32 %t0, %i0, 4; mov.b64 %l0, {%t0, %t0};\nmatch.any.sync.b64 %o0, %l0, -1;",
        &[Small],
        1,
    ),
    (
        "match.all.sync.b32",
        "shr.u32 %t0, %i0, 7; match.all.sync.b32 %o0|%p0, %t0, -1;\nselp.b32 %o1, 1, 0, %p0;",
        &[Small],
        2,
    ),
    (
        "match.all.sync.b32 apart",
        "match.all.sync.b32 %o0|%p0, %i0, -1;\nselp.b32 %o1, 1, 0, %p0;",
        &[Small],
        2,
    ),
    (
        "redux.sync.add.s32",
        "redux.sync.add.s32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.min.s32",
        "redux.sync.min.s32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.max.s32",
        "redux.sync.max.s32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.min.u32",
        "redux.sync.min.u32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.max.u32",
        "redux.sync.max.u32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.and.b32",
        "redux.sync.and.b32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.or.b32",
        "redux.sync.or.b32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "redux.sync.xor.b32",
        "redux.sync.xor.b32 %o0, %i0, -1;",
        &[Word],
        1,
    ),
    (
        "activemask.b32",
        "mov.u32 %o0, 0; setp.lt.u32 %p0, %thread, 7;\n@%p0 bra OVER;\nactivemask.b32 %o0;\nOVER:",
        &[],
        1,
    ),
    (
        "%lanemask",
        "mov.u32 %o0, %lanemask_lt; mov.u32 %o1, %lanemask_ge; mov.u32 %o2, %laneid;",
        &[],
        3,
    ),
];

pub(super) fn forms() -> Vec<Form> {
    let mut forms: Vec<Form> = ROWS
        .iter()
        .map(|(name, body, inputs, outputs)| form(name, body, inputs, *outputs))
        .collect();
    for mode in ["up", "down", "bfly", "idx"] {
        // Whole warps, halves, and quarters: the mask of the segment lies in bits 8 to 12.
        for clamp in ["0x1f", "0x0", "0x1000", "0x101f", "0x1807"] {
            let name = format!("shfl.sync.{mode}.b32 {clamp}");
            let body = format!(
                "shfl.sync.{mode}.b32 %o0|%p0, %i0, %i1, {clamp}, -1;\nselp.b32 %o1, 1, 0, %p0;\n"
            );
            forms.push(form(&name, &body, &[Word, Small], 2));
        }
    }
    forms
}

fn form(name: &str, body: &str, inputs: &[Input], outputs: u32) -> Form {
    let body = format!("{body}\n");
    Form {
        name: name.into(),
        target: Target::Sm80,
        ptx: module(
            Target::Sm80,
            (inputs.len(), outputs),
            BLOCKS * 32,
            ("", ""),
            &body,
        ),
        blocks: BLOCKS,
        threads: 32,
        inputs: inputs.to_vec(),
        outputs,
        agreement: Agreement::Bits,
        map: None,
    }
}
