//! Forms of the copy engines: `cp.async`, and tensor copies through tensor maps.

use super::{Agreement, Form, Input, Target, module};
use crate::tensor_map::{DataType, Swizzle, TensorMap};

/// A tensor's dimensions, a box of it, the box's place, the element stride, the swizzle.
type Box = (&'static [u64], &'static [u32], &'static [i32], u32, Swizzle);

pub(super) fn forms() -> Vec<Form> {
    let mut forms: Vec<Form> = [
        ("ca", 4, 4),
        ("ca", 8, 8),
        ("ca", 8, 3),
        ("ca", 16, 16),
        ("ca", 16, 6),
        ("cg", 16, 16),
        ("cg", 16, 5),
        ("cg", 16, 0),
    ]
    .map(|(cache, bytes, source)| cp_async(cache, bytes, source))
    .into();
    let (none, wide) = (Swizzle::None, Swizzle::Bytes128);
    let rows: &[Box] = &[
        (&[500], &[128], &[7], 1, none),
        (&[500], &[128], &[-5], 1, none),
        (&[500], &[128], &[450], 1, none),
        (&[60, 30], &[32, 8], &[3, 4], 1, none),
        (&[60, 30], &[32, 8], &[-3, 26], 1, none),
        (&[60, 30], &[32, 8], &[40, -2], 3, none),
        (&[24, 9, 7], &[16, 5, 3], &[-1, 2, 5], 1, none),
        (&[24, 9, 7], &[16, 5, 3], &[9, 5, -1], 2, none),
        (&[9, 7, 5, 4], &[8, 3, 2, 2], &[2, 1, 3, 2], 1, none),
        (
            &[9, 4, 3, 4, 3],
            &[8, 2, 2, 2, 2],
            &[-2, 1, 1, 2, 1],
            1,
            none,
        ),
        (&[60, 40], &[16, 24], &[5, 6], 1, Swizzle::Bytes32),
        (&[60, 40], &[32, 24], &[5, 6], 1, Swizzle::Bytes64),
        (&[60, 40], &[64, 24], &[-5, 30], 1, wide),
        (&[90, 40], &[64, 16], &[8, 0], 2, wide),
        (&[64, 10, 4], &[64, 4, 3], &[0, 8, 1], 1, wide),
        // Rows narrower than their swizzle: nothing documents where they lie.
        (&[60, 40], &[8, 16], &[5, 6], 1, Swizzle::Bytes32),
        (&[60, 40], &[16, 16], &[5, 6], 1, Swizzle::Bytes64),
        (&[60, 40], &[32, 16], &[5, 6], 1, wide),
    ];
    for (dims, box_dims, coordinates, element_stride, swizzle) in rows {
        for store in [false, true] {
            forms.push(tensor(
                dims,
                box_dims,
                coordinates,
                *element_stride,
                *swizzle,
                store,
            ));
        }
    }
    forms
}

/// Each lane copies from its own place in the input.
fn cp_async(cache: &str, bytes: u32, source: u32) -> Form {
    let declarations = ".shared .align 16 .b8 tile[512];\n";
    // The input's words lie 4·T bytes apart: lane l reads 16 bytes from byte 16·l of word 0.
    let body = format!(
        "mov.u32 %t1, tile;\nmad.lo.u32 %t2, %thread, 16, %t1;\n\
         mov.b32 %t3, -1;\nst.shared.v4.b32 [%t2], {{%t3, %t3, %t3, %t3}};\n\
         mul.wide.u32 %l0, %thread, 12;\nadd.s64 %l0, %in, %l0;\n\
         cp.async.{cache}.shared.global [%t2], [%l0], {bytes}, {source};\n\
         cp.async.commit_group;\ncp.async.wait_group 0;\n\
         ld.shared.v4.b32 {{%o0, %o1, %o2, %o3}}, [%t2];\n"
    );
    let inputs = vec![Input::Word; 4];
    Form {
        name: format!("cp.async.{cache}.shared.global {bytes}, {source}"),
        target: Target::Sm80,
        ptx: module(Target::Sm80, (4, 4), 32, (declarations, ""), &body),
        blocks: 1,
        threads: 32,
        inputs,
        outputs: 4,
        agreement: Agreement::Bits,
        map: None,
    }
}

/// Loads a box and returns 8 KB of shared memory; or stores a box, and returns what the tensor
/// (the input, 16 KB) holds then.
fn tensor(
    dims: &[u64],
    box_dims: &[u32],
    coordinates: &[i32],
    element_stride: u32,
    swizzle: Swizzle,
    store: bool,
) -> Form {
    let rank = dims.len();
    let mut strides = Vec::new();
    let mut stride = (dims[0] * 2).next_multiple_of(16);
    for dim in &dims[1..] {
        strides.push(stride);
        stride *= dim;
    }
    let map = TensorMap {
        data_type: DataType::Uint16,
        address: 0,
        dims: dims.to_vec(),
        strides,
        box_dims: box_dims.to_vec(),
        element_strides: vec![element_stride; rank],
        swizzle,
        nan_fill: false,
    };
    let rows: u32 = box_dims[1..]
        .iter()
        .map(|size| size.div_ceil(element_stride))
        .product();
    let bytes = rows * box_dims[0] * 2;
    let coordinates: Vec<String> = coordinates.iter().map(i32::to_string).collect();
    let coordinates = coordinates.join(", ");
    let (inputs, outputs) = (128, if store { 128 } else { 64 });
    let mut body = String::from("mov.u32 %t1, tile;\nmad.lo.u32 %t2, %thread, 4, %t1;\n");
    for word in 0..64 {
        let value = if store {
            format!("%i{}", 127 - word)
        } else {
            "0x5a5a5a5a".into()
        };
        body += &format!("st.shared.b32 [%t2+{}], {value};\n", word * 128);
    }
    body += "mov.u32 %t4, gate;\nmov.b64 %l1, map;\nsetp.eq.s32 %p0, %thread, 0;\n\
             cvta.param.u64 %l1, %l1;\n@%p0 mbarrier.init.shared.b64 [%t4], 1;\n\
             fence.proxy.async;\nbar.sync 0;\n@!%p0 bra ISSUED;\n";
    if store {
        body += &format!(
            "cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%l1, {{{coordinates}}}], [%t1];\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nISSUED:\nbar.sync 0;\n"
        );
        for word in 0..outputs {
            body += &format!("ld.global.b32 %o{word}, [%in+{}];\n", word * 128);
        }
    } else {
        body += &format!(
            "mbarrier.arrive.expect_tx.shared.b64 %l2, [%t4], {bytes};\n\
             cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes \
             [%t1], [%l1, {{{coordinates}}}], [%t4];\nISSUED:\n\
             WAITING:\nmbarrier.try_wait.parity.shared.b64 %p1, [%t4], 0;\n@!%p1 bra WAITING;\n"
        );
        for word in 0..outputs {
            body += &format!("ld.shared.b32 %o{word}, [%t2+{}];\n", word * 128);
        }
    }
    let declarations = ".shared .align 1024 .b8 tile[8192];\n.shared .align 8 .b64 gate;\n";
    let parameters = ", .param .align 64 .b8 map[128]";
    let direction = if store { "store" } else { "load" };
    Form {
        name: format!(
            "cp.async.bulk.tensor.{rank}d {direction} {dims:?} {box_dims:?} at {coordinates} by {element_stride}, {swizzle:?}"
        ),
        target: Target::Sm90a,
        ptx: module(
            Target::Sm90a,
            (inputs, outputs),
            32,
            (declarations, parameters),
            &body,
        ),
        blocks: 1,
        threads: 32,
        inputs: vec![Input::Word; inputs],
        outputs,
        agreement: Agreement::Bits,
        map: Some(map),
    }
}
