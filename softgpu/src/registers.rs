//! The registers of a warp, lane-contiguous, and how functions of one lane become actions on all.

/// Lanes of a warp.
pub const LANES: usize = 32;

/// One register of all lanes.
pub(crate) type Row<T> = [T; LANES];

/// The registers of a warp: 32-bit (and narrower), 64-bit, and predicates (one bit a lane).
#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) narrow: Vec<Row<u32>>,
    pub(crate) wide: Vec<Row<u64>>,
    pub(crate) predicates: Vec<u32>,
}

/// An instruction on registers alone: registers, and the mask of lanes that execute it.
pub(crate) type Action = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;

/// The width of a raw register.
pub(crate) trait Raw: Copy + Default + 'static {
    fn rows(registers: &Registers) -> &[Row<Self>];
    fn rows_mut(registers: &mut Registers) -> &mut [Row<Self>];
}

impl Raw for u32 {
    fn rows(registers: &Registers) -> &[Row<Self>] {
        &registers.narrow
    }
    fn rows_mut(registers: &mut Registers) -> &mut [Row<Self>] {
        &mut registers.narrow
    }
}

impl Raw for u64 {
    fn rows(registers: &Registers) -> &[Row<Self>] {
        &registers.wide
    }
    fn rows_mut(registers: &mut Registers) -> &mut [Row<Self>] {
        &mut registers.wide
    }
}

/// A type that a lane computes with, and the raw register that holds it.
pub(crate) trait Lane: Copy + 'static {
    type Raw: Raw;
    fn from_raw(raw: Self::Raw) -> Self;
    fn to_raw(self) -> Self::Raw;
}

macro_rules! lane {
    ($($type:ty, $raw:ty, |$from:ident| $read:expr, |$to:ident| $write:expr;)*) => {$(
        impl Lane for $type {
            type Raw = $raw;
            #[inline(always)]
            fn from_raw($from: $raw) -> Self { $read }
            #[inline(always)]
            fn to_raw(self) -> $raw { let $to = self; $write }
        }
    )*};
}

lane! {
    u8, u32, |x| x as u8, |x| u32::from(x);
    i8, u32, |x| x as i8, |x| x as i32 as u32;
    u16, u32, |x| x as u16, |x| u32::from(x);
    i16, u32, |x| x as i16, |x| u32::from(x as u16);
    u32, u32, |x| x, |x| x;
    i32, u32, |x| x as i32, |x| x as u32;
    f32, u32, |x| f32::from_bits(x), |x| x.to_bits();
    u64, u64, |x| x, |x| x;
    i64, u64, |x| x as i64, |x| x as u64;
    f64, u64, |x| f64::from_bits(x), |x| x.to_bits();
}

/// A register's index in the file that its type belongs to.
pub(crate) type Index = u32;

impl Registers {
    #[inline(always)]
    pub(crate) fn row<R: Raw>(&self, index: Index) -> &Row<R> {
        &R::rows(self)[index as usize]
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn put<R: Raw>(&mut self, index: Index, mask: u32, values: &Row<R>) {
        let row = &mut R::rows_mut(self)[index as usize];
        if mask == !0 {
            *row = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 != 0 {
                    row[lane] = values[lane];
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn predicate(&self, index: Index) -> u32 {
        self.predicates[index as usize]
    }

    #[inline(always)]
    pub(crate) fn put_predicate(&mut self, index: Index, mask: u32, bits: u32) {
        let old = &mut self.predicates[index as usize];
        *old = *old & !mask | bits & mask;
    }
}

/// `d = f(a)`.
pub(crate) fn unary<A: Lane, D: Lane>(
    [d, a]: [Index; 2],
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Action {
    Box::new(move |registers, mask| {
        let a = registers.row::<A::Raw>(a);
        let out = std::array::from_fn(|lane| f(A::from_raw(a[lane])).to_raw());
        registers.put(d, mask, &out);
    })
}

/// `d = f(a, b)`.
pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(
    [d, a, b]: [Index; 3],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Action {
    Box::new(move |registers, mask| {
        let (a, b) = (registers.row::<A::Raw>(a), registers.row::<B::Raw>(b));
        let out =
            std::array::from_fn(|lane| f(A::from_raw(a[lane]), B::from_raw(b[lane])).to_raw());
        registers.put(d, mask, &out);
    })
}

/// `d = f(a, b, c)`.
pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
    [d, a, b, c]: [Index; 4],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Action {
    Box::new(move |registers, mask| {
        let (a, b, c) = (
            registers.row::<A::Raw>(a),
            registers.row::<B::Raw>(b),
            registers.row::<C::Raw>(c),
        );
        let out = std::array::from_fn(|lane| {
            f(
                A::from_raw(a[lane]),
                B::from_raw(b[lane]),
                C::from_raw(c[lane]),
            )
            .to_raw()
        });
        registers.put(d, mask, &out);
    })
}

/// `d = f(a, b, c, e)`.
pub(crate) fn quaternary<A: Lane, B: Lane, C: Lane, E: Lane, D: Lane>(
    [d, a, b, c, e]: [Index; 5],
    f: impl Fn(A, B, C, E) -> D + Send + Sync + 'static,
) -> Action {
    Box::new(move |registers, mask| {
        let (a, b) = (registers.row::<A::Raw>(a), registers.row::<B::Raw>(b));
        let (c, e) = (registers.row::<C::Raw>(c), registers.row::<E::Raw>(e));
        let out = std::array::from_fn(|lane| {
            let (a, b) = (A::from_raw(a[lane]), B::from_raw(b[lane]));
            f(a, b, C::from_raw(c[lane]), E::from_raw(e[lane])).to_raw()
        });
        registers.put(d, mask, &out);
    })
}

/// The bits `f(a, b)` of all lanes.
#[inline(always)]
fn bits<A: Lane>(registers: &Registers, a: Index, b: Index, f: impl Fn(A, A) -> bool) -> u32 {
    let (a, b) = (registers.row::<A::Raw>(a), registers.row::<A::Raw>(b));
    let found: Row<u32> = std::array::from_fn(|lane| {
        u32::from(f(A::from_raw(a[lane]), A::from_raw(b[lane]))) << lane
    });
    found.iter().fold(0, |all, bit| all | bit)
}

/// `p = combine(f(a, b), c)`, `q = combine(!f(a, b), c)`, on whole masks of predicate bits.
pub(crate) fn compare<A: Lane>(
    [p, q]: [Index; 2],
    [a, b, c]: [Index; 3],
    f: impl Fn(A, A) -> bool + Send + Sync + 'static,
    combine: fn(u32, u32) -> u32,
) -> Action {
    Box::new(move |registers, mask| {
        let found = bits(registers, a, b, &f);
        let c = registers.predicate(c);
        registers.put_predicate(p, mask, combine(found, c));
        registers.put_predicate(q, mask, combine(!found, c));
    })
}

/// `d = combine(f(a, b), c) ? truth : 0`: the `set` instruction.
pub(crate) fn set<A: Lane, D: Lane + Send + Sync>(
    d: Index,
    [a, b, c]: [Index; 3],
    truth: D,
    f: impl Fn(A, A) -> bool + Send + Sync + 'static,
    combine: fn(u32, u32) -> u32,
) -> Action {
    Box::new(move |registers, mask| {
        let found = combine(bits(registers, a, b, &f), registers.predicate(c));
        let out = std::array::from_fn(|lane| {
            if found >> lane & 1 != 0 {
                truth.to_raw()
            } else {
                D::Raw::default()
            }
        });
        registers.put(d, mask, &out);
    })
}

/// `d = p ? a : b`.
pub(crate) fn select<R: Raw>([d, a, b, p]: [Index; 4]) -> Action {
    Box::new(move |registers, mask| {
        let (a, b, p) = (
            registers.row::<R>(a),
            registers.row::<R>(b),
            registers.predicate(p),
        );
        let out = std::array::from_fn(|lane| if p >> lane & 1 != 0 { a[lane] } else { b[lane] });
        registers.put(d, mask, &out);
    })
}

/// `p = f(a, b, c)` on whole masks of predicate bits.
pub(crate) fn logic(
    [p, a, b, c]: [Index; 4],
    f: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static,
) -> Action {
    Box::new(move |registers, mask| {
        let out = f(
            registers.predicate(a),
            registers.predicate(b),
            registers.predicate(c),
        );
        registers.put_predicate(p, mask, out);
    })
}
