//! `ldmatrix`, `stmatrix` and `movmatrix`: 8×8 matrices of 16-bit elements across a warp.
//!
//! The executor reads or writes the rows (of matrix i at the addresses of lanes 8i to 8i+7); here
//! they are spread over the lanes: lane l holds elements 2(l mod 4) and 2(l mod 4)+1 of row ⌊l/4⌋.

use super::Lanes;

/// An 8×8 matrix of 16-bit elements: the 16 bytes of each row.
pub type Rows = [[u8; 16]; 8];

fn element(rows: &Rows, row: usize, column: usize) -> u32 {
    u32::from(u16::from_le_bytes([
        rows[row][2 * column],
        rows[row][2 * column + 1],
    ]))
}

/// The register that `ldmatrix` (with `.trans` if `transpose`) gives each lane for one matrix.
#[must_use]
pub fn distribute(rows: &Rows, transpose: bool) -> Lanes {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let [low, high] = [column, column + 1].map(|column| {
            if transpose {
                element(rows, column, row)
            } else {
                element(rows, row, column)
            }
        });
        high << 16 | low
    })
}

/// The rows that `stmatrix` (with `.trans` if `transpose`) stores for one register: the inverse of
/// [`distribute`].
#[must_use]
pub fn collect(lanes: &Lanes, transpose: bool) -> Rows {
    let mut rows = [[0; 16]; 8];
    for (lane, bits) in lanes.iter().enumerate() {
        for (index, half) in [*bits as u16, (bits >> 16) as u16].into_iter().enumerate() {
            let (row, column) = (lane / 4, lane % 4 * 2 + index);
            let (row, column) = if transpose {
                (column, row)
            } else {
                (row, column)
            };
            rows[row][2 * column..2 * column + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    rows
}

/// `movmatrix.trans`: the transposed matrix in the same fragment.
#[must_use]
pub fn transpose(lanes: &Lanes) -> Lanes {
    distribute(&collect(lanes, false), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element (row, column) is 100·row + column.
    fn numbered() -> Rows {
        let mut rows = [[0; 16]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            for (c, bytes) in row.chunks_exact_mut(2).enumerate() {
                bytes.copy_from_slice(&(100 * r as u16 + c as u16).to_le_bytes());
            }
        }
        rows
    }

    const fn pair(low: u32, high: u32) -> u32 {
        high << 16 | low
    }

    #[test]
    fn lanes_hold_what_the_figure_of_ldmatrix_shows() {
        let lanes = distribute(&numbered(), false);
        assert_eq!(
            lanes[..5],
            [
                pair(0, 1),
                pair(2, 3),
                pair(4, 5),
                pair(6, 7),
                pair(100, 101)
            ]
        );
        assert_eq!(lanes[31], pair(706, 707));
        let lanes = distribute(&numbered(), true);
        assert_eq!(lanes[..3], [pair(0, 100), pair(200, 300), pair(400, 500)]);
        assert_eq!((lanes[4], lanes[31]), (pair(1, 101), pair(607, 707)));
    }

    #[test]
    fn stmatrix_undoes_ldmatrix_and_movmatrix_transposes() {
        let rows = numbered();
        for transpose in [false, true] {
            assert_eq!(collect(&distribute(&rows, transpose), transpose), rows);
        }
        assert_eq!(
            transpose(&distribute(&rows, false)),
            distribute(&rows, true)
        );
    }
}
