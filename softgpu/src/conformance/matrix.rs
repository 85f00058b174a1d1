//! Forms of the tensor cores: `mma`, `ldmatrix` and its kin, `wgmma`.

use std::fmt::Write;

use super::{Agreement, Form, Input, Target, module};

pub(super) fn forms() -> Vec<Form> {
    let mut forms = mma_forms();
    forms.extend(matrix_forms());
    forms.extend(wgmma_forms());
    forms
}

fn registers(prefix: &str, range: std::ops::Range<usize>) -> String {
    let names: Vec<String> = range.map(|index| format!("{prefix}{index}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// `mma.sync`: shape, types, registers of A, B and C; inputs with exact sums, and without.
fn mma_forms() -> Vec<Form> {
    use Input::{
        Bytes, IntegerBrains, IntegerFloat, IntegerHalves, Moderate, ModerateBrains,
        ModerateHalves, Word,
    };
    let rows = [
        (
            "m16n8k8",
            "f32.f16.f16.f32",
            [2, 1, 4],
            8,
            IntegerHalves,
            IntegerFloat,
        ),
        (
            "m16n8k16",
            "f32.f16.f16.f32",
            [4, 2, 4],
            16,
            IntegerHalves,
            IntegerFloat,
        ),
        (
            "m16n8k8",
            "f16.f16.f16.f16",
            [2, 1, 2],
            8,
            IntegerHalves,
            IntegerHalves,
        ),
        (
            "m16n8k16",
            "f16.f16.f16.f16",
            [4, 2, 2],
            16,
            IntegerHalves,
            IntegerHalves,
        ),
        (
            "m16n8k8",
            "f32.bf16.bf16.f32",
            [2, 1, 4],
            8,
            IntegerBrains,
            IntegerFloat,
        ),
        (
            "m16n8k16",
            "f32.bf16.bf16.f32",
            [4, 2, 4],
            16,
            IntegerBrains,
            IntegerFloat,
        ),
        (
            "m16n8k4",
            "f32.tf32.tf32.f32",
            [2, 1, 4],
            4,
            IntegerFloat,
            IntegerFloat,
        ),
        (
            "m16n8k8",
            "f32.tf32.tf32.f32",
            [4, 2, 4],
            8,
            IntegerFloat,
            IntegerFloat,
        ),
        ("m16n8k16", "s32.s8.s8.s32", [2, 1, 4], 16, Bytes, Word),
        ("m16n8k32", "s32.s8.u8.s32", [4, 2, 4], 32, Bytes, Word),
        ("m16n8k32", "s32.u8.s8.s32", [4, 2, 4], 32, Bytes, Word),
    ];
    let mut forms = Vec::new();
    for (shape, types, counts, k, factor, addend) in rows {
        forms.push(mma(
            shape,
            types,
            counts,
            "integers",
            (factor, addend),
            Agreement::Bits,
        ));
        let rounded = match factor {
            IntegerHalves => ModerateHalves,
            IntegerBrains => ModerateBrains,
            IntegerFloat => Moderate,
            _ => continue,
        };
        if addend == IntegerFloat {
            let agreement = Agreement::Sum { terms: k + 1 };
            forms.push(mma(
                shape,
                types,
                counts,
                "rounded",
                (rounded, Moderate),
                agreement,
            ));
        }
    }
    forms
}

fn mma(
    shape: &str,
    types: &str,
    [a, b, c]: [usize; 3],
    values: &str,
    (factor, addend): (Input, Input),
    agreement: Agreement,
) -> Form {
    let instruction = format!("mma.sync.aligned.{shape}.row.col.{types}");
    let body = format!(
        "{instruction} {}, {}, {}, {};\n",
        registers("%o", 0..c),
        registers("%i", 0..a),
        registers("%i", a..a + b),
        registers("%i", a + b..a + b + c)
    );
    let inputs = [vec![factor; a + b], vec![addend; c]].concat();
    warp_form(
        format!("{instruction} {values}"),
        ("", &body),
        inputs,
        c as u32,
        agreement,
    )
}

/// A form of one warp a block, two blocks.
fn warp_form(
    name: String,
    (declarations, body): (&str, &str),
    inputs: Vec<Input>,
    outputs: u32,
    agreement: Agreement,
) -> Form {
    let target = Target::Sm80;
    let ptx = module(
        target,
        (inputs.len(), outputs),
        64,
        (declarations, ""),
        body,
    );
    Form {
        name,
        target,
        ptx,
        blocks: 2,
        threads: 32,
        inputs,
        outputs,
        agreement,
        map: None,
    }
}

/// `ldmatrix` from rows in a random order, `stmatrix`, `movmatrix`.
fn matrix_forms() -> Vec<Form> {
    let shared = ".shared .align 128 .b8 rows[512];\n";
    // Each lane stores 16 bytes: word w of the block lies at 4·(4·lane + w).
    let fill = "mov.u32 %t1, rows;\nmad.lo.u32 %t2, %thread, 16, %t1;\n\
                st.shared.v4.b32 [%t2], {%i0, %i1, %i2, %i3};\nbar.sync 0;\n";
    let mut forms = Vec::new();
    for (count, number) in [("x1", 1), ("x2", 2), ("x4", 4)] {
        for transpose in ["", ".trans"] {
            let name = format!("ldmatrix.sync.aligned.m8n8.{count}{transpose}.shared.b16");
            let body = format!(
                "{fill}add.u32 %t3, %t1, %i4;\n{name} {}, [%t3];\n",
                registers("%o", 0..number)
            );
            let inputs = [vec![Input::Word; 4], vec![Input::Row]].concat();
            forms.push(warp_form(
                name,
                (shared, &body),
                inputs,
                number as u32,
                Agreement::Bits,
            ));
            let name = format!("stmatrix.sync.aligned.m8n8.{count}{transpose}.shared.b16");
            // Lane l gives the address of row 5·l + 3: each row once.
            let body = format!(
                "{fill}mad.lo.u32 %t3, %thread, 80, 48;\nand.b32 %t3, %t3, 511;\n\
                 add.u32 %t3, %t3, %t1;\n{name} [%t3], {};\nbar.sync 0;\n\
                 ld.shared.v4.b32 {{%o0, %o1, %o2, %o3}}, [%t2];\n",
                registers("%i", 0..number)
            );
            let mut form = warp_form(
                name,
                (shared, &body),
                vec![Input::Word; 4],
                4,
                Agreement::Bits,
            );
            form.target = Target::Sm90a;
            form.ptx = module(form.target, (4, 4), 64, (shared, ""), &body);
            forms.push(form);
        }
    }
    let name = "movmatrix.sync.aligned.m8n8.trans.b16";
    let body = format!("{name} %o0, %i0;\n");
    forms.push(warp_form(
        name.into(),
        ("", &body),
        vec![Input::Word],
        1,
        Agreement::Bits,
    ));
    forms
}

/// The layout of a wgmma operand in shared memory: the bits of its descriptor.
#[derive(Clone, Copy)]
struct Layout {
    start: u32,
    leading: u32,
    stride: u32,
    base: u64,
    mode: u64,
}

impl Layout {
    fn bits(self) -> u64 {
        let field = |bytes: u32| u64::from(bytes >> 4);
        field(self.start)
            | field(self.leading) << 16
            | field(self.stride) << 32
            | self.base << 49
            | self.mode << 62
    }
}

const SWIZZLES: [(&str, u64, u32); 4] = [
    ("no swizzle", 0, 16),
    ("32 bytes", 3, 32),
    ("64 bytes", 2, 64),
    ("128 bytes", 1, 128),
];

/// The layout of a tile with that swizzle mode and width, dense along its inner blocks. Where
/// nothing but the two blocks along K or M/N is strided the values are chosen to tell them apart.
fn layout(start: u32, mode: u64, width: u32, transposed: bool) -> Layout {
    let group = 8 * width;
    let (leading, stride) = match (mode, transposed) {
        (0, false) => (2048, group),
        (0, true) => (4096, group),
        (_, false) => (16, group),
        (_, true) => (2 * group, group),
    };
    Layout {
        start,
        leading,
        stride,
        base: 0,
        mode,
    }
}

/// `wgmma.mma_async` on 32 KB of shared memory full of small integers: a chunk that is looked for
/// in the wrong place gives a wrong product.
fn wgmma_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let bf16 = |n| ("f32.bf16.bf16", 16, n, Input::IntegerBrains);
    for n in [8, 16, 24, 64, 128, 136, 256] {
        // 256 rows of 128 bytes are all that there is.
        let b = layout(0, 1, 128, false);
        forms.push(wgmma("A in registers", bf16(n), None, (b, "1, 1, 0")));
    }
    for (name, mode, width) in SWIZZLES {
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let a = layout(0, mode, width, transpose_a);
            let b = layout(0x4000, mode, width, transpose_b);
            let flags = format!("1, 1, {}, {}", u8::from(transpose_a), u8::from(transpose_b));
            let major = |transposed| if transposed { "MN-major" } else { "K-major" };
            let name = format!("{name}, A {}, B {}", major(transpose_a), major(transpose_b));
            forms.push(wgmma(&name, bf16(64), Some(a), (b, &flags)));
        }
        let (a, b) = (
            layout(0, mode, width, false),
            layout(0x4000, mode, width, false),
        );
        let tf32 = ("f32.tf32.tf32", 8, 64, Input::IntegerFloat);
        forms.push(wgmma(name, tf32, Some(a), (b, "1, 1")));
        let integers = ("s32.s8.s8", 32, 64, Input::Bytes);
        forms.push(wgmma(name, integers, Some(a), (b, "")));
    }
    let (a, b) = (layout(0, 1, 128, false), layout(0x4000, 1, 128, false));
    let halves = ("f32.f16.f16", 16, 64, Input::IntegerHalves);
    forms.push(wgmma("f16", halves, Some(a), (b, "1, 1, 0, 0")));
    let narrow = ("f16.f16.f16", 16, 64, Input::IntegerHalves);
    forms.push(wgmma("f16 sums", narrow, Some(a), (b, "1, 1, 0, 0")));
    forms.push(wgmma("negated", bf16(32), Some(a), (b, "-1, 1, 0, 0")));
    // The second step along K of a 128-byte row, and a pattern that starts off its alignment.
    let step = |layout: Layout| Layout {
        start: layout.start + 32,
        ..layout
    };
    forms.push(wgmma(
        "second step along K",
        bf16(64),
        Some(step(a)),
        (step(b), "1, 1, 0, 0"),
    ));
    for rows in [1, 3] {
        let off = |layout: Layout| Layout {
            start: layout.start + 128 * rows,
            base: rows.into(),
            ..layout
        };
        let name = format!("base offset {rows}");
        forms.push(wgmma(&name, bf16(64), Some(off(a)), (off(b), "1, 1, 0, 0")));
    }
    forms
}

fn wgmma(
    name: &str,
    (types, k, n, values): (&str, u32, u32, Input),
    a: Option<Layout>,
    (b, immediates): (Layout, &str),
) -> Form {
    const SHARED_WORDS: usize = 64;
    let instruction = format!("wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types}");
    let outputs = if types.starts_with("f16") {
        n / 4
    } else {
        n / 2
    };
    let mut body = String::from("mov.u32 %t1, tile;\nmad.lo.u32 %t2, %thread, 4, %t1;\n");
    for word in 0..SHARED_WORDS {
        let _ = writeln!(body, "st.shared.b32 [%t2+{}], %i{word};", word * 512);
    }
    body.push_str("fence.proxy.async;\nbar.sync 0;\nshr.u32 %t3, %t1, 4;\ncvt.u64.u32 %l0, %t3;\n");
    let _ = writeln!(body, "add.s64 %l2, %l0, {:#x};", b.bits());
    let mut inputs = vec![values; SHARED_WORDS];
    let a = match a {
        Some(a) => {
            let _ = writeln!(body, "add.s64 %l1, %l0, {:#x};", a.bits());
            "%l1".into()
        }
        None => {
            inputs.extend([values; 4]);
            registers("%i", SHARED_WORDS..SHARED_WORDS + 4)
        }
    };
    for word in 0..outputs {
        let _ = writeln!(body, "mov.b32 %o{word}, 0;");
    }
    let comma = if immediates.is_empty() { "" } else { ", " };
    let _ = write!(
        body,
        "setp.ne.s32 %p0, %thread, -1;\nwgmma.fence.sync.aligned;\n\
         {instruction} {}, {a}, %l2, %p0{comma}{immediates};\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        registers("%o", 0..outputs as usize)
    );
    let declarations = ".shared .align 1024 .b8 tile[32768];\n";
    Form {
        name: format!("{instruction} {name}"),
        target: Target::Sm90a,
        ptx: module(
            Target::Sm90a,
            (inputs.len(), outputs),
            128,
            (declarations, ""),
            &body,
        ),
        blocks: 1,
        threads: 128,
        inputs,
        outputs,
        agreement: Agreement::Bits,
        map: None,
    }
}
