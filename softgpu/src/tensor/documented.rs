//! The fragment figures of the PTX ISA, for the tests: they start from the figures' rows of
//! `Tlane: {elements}` boxes, not from the index formula of the implementation.

/// A map from a matrix element to the lane and the element of the lane that hold it.
#[derive(Debug)]
pub(crate) struct Fragment {
    columns: usize,
    boxes: Vec<(usize, usize)>,
}

impl Fragment {
    pub(crate) fn at(&self, row: usize, column: usize) -> (usize, usize) {
        self.boxes[row * self.columns + column]
    }

    /// Reads one row of a figure a line, each `lane:elements` box separated by a space:
    /// `0:0,1` says that thread 0 holds these two columns as its elements 0 and 1.
    fn read(figure: &str) -> Self {
        let mut boxes = Vec::new();
        let mut columns = 0;
        for line in figure
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            let start = boxes.len();
            for entry in line.split_whitespace() {
                let (lane, elements) = entry.split_once(':').expect("lane:elements");
                let lane = lane.parse().expect("a lane");
                for element in elements.split(',') {
                    boxes.push((lane, element.parse().expect("an element")));
                }
            }
            columns = boxes.len() - start;
        }
        Self { columns, boxes }
    }

    /// A figure whose rows continue its first one, as the ISA abbreviates them: each group of
    /// eight rows repeats with the lanes of the row before plus 4.
    fn continued(first_rows: &[&str]) -> Self {
        let mut figure = String::new();
        for first in first_rows {
            for row in 0..8 {
                for entry in first.split_whitespace() {
                    let (lane, elements) = entry.split_once(':').expect("lane:elements");
                    let lane: usize = lane.parse().expect("a lane");
                    figure.push_str(&format!("{}:{elements} ", lane + 4 * row));
                }
                figure.push('\n');
            }
        }
        Self::read(&figure)
    }

    /// A B figure, given by its first column from top to bottom: each next column repeats it with
    /// the lanes of the column before plus 4.
    fn columns_continued(first_column: &str) -> Self {
        let transposed = Self::continued(&[first_column]);
        let rows = transposed.columns;
        let boxes = (0..rows)
            .flat_map(|row| (0..8).map(move |column| (row, column)))
            .map(|(row, column)| transposed.at(column, row))
            .collect();
        Self { columns: 8, boxes }
    }
}

pub(crate) fn a_m16k8_16bit() -> Fragment {
    Fragment::continued(&["0:0,1 1:0,1 2:0,1 3:0,1", "0:2,3 1:2,3 2:2,3 3:2,3"])
}

pub(crate) fn a_m16k16_16bit() -> Fragment {
    Fragment::continued(&[
        "0:0,1 1:0,1 2:0,1 3:0,1 0:4,5 1:4,5 2:4,5 3:4,5",
        "0:2,3 1:2,3 2:2,3 3:2,3 0:6,7 1:6,7 2:6,7 3:6,7",
    ])
}

pub(crate) fn a_m16k4_tf32() -> Fragment {
    Fragment::continued(&["0:0 1:0 2:0 3:0", "0:1 1:1 2:1 3:1"])
}

pub(crate) fn a_m16k8_tf32() -> Fragment {
    Fragment::continued(&[
        "0:0 1:0 2:0 3:0 0:2 1:2 2:2 3:2",
        "0:1 1:1 2:1 3:1 0:3 1:3 2:3 3:3",
    ])
}

pub(crate) fn a_m16k16_8bit() -> Fragment {
    Fragment::continued(&[
        "0:0,1,2,3 1:0,1,2,3 2:0,1,2,3 3:0,1,2,3",
        "0:4,5,6,7 1:4,5,6,7 2:4,5,6,7 3:4,5,6,7",
    ])
}

pub(crate) fn a_m16k32_8bit() -> Fragment {
    Fragment::continued(&[
        "0:0,1,2,3 1:0,1,2,3 2:0,1,2,3 3:0,1,2,3 \
         0:8,9,10,11 1:8,9,10,11 2:8,9,10,11 3:8,9,10,11",
        "0:4,5,6,7 1:4,5,6,7 2:4,5,6,7 3:4,5,6,7 \
         0:12,13,14,15 1:12,13,14,15 2:12,13,14,15 3:12,13,14,15",
    ])
}

pub(crate) fn b_k8_16bit() -> Fragment {
    Fragment::columns_continued("0:0,1 1:0,1 2:0,1 3:0,1")
}

pub(crate) fn b_k16_16bit() -> Fragment {
    Fragment::columns_continued("0:0,1 1:0,1 2:0,1 3:0,1 0:2,3 1:2,3 2:2,3 3:2,3")
}

pub(crate) fn b_k4_tf32() -> Fragment {
    Fragment::columns_continued("0:0 1:0 2:0 3:0")
}

pub(crate) fn b_k8_tf32() -> Fragment {
    Fragment::columns_continued("0:0 1:0 2:0 3:0 0:1 1:1 2:1 3:1")
}

pub(crate) fn b_k16_8bit() -> Fragment {
    Fragment::columns_continued("0:0,1,2,3 1:0,1,2,3 2:0,1,2,3 3:0,1,2,3")
}

pub(crate) fn b_k32_8bit() -> Fragment {
    Fragment::columns_continued(
        "0:0,1,2,3 1:0,1,2,3 2:0,1,2,3 3:0,1,2,3 0:4,5,6,7 1:4,5,6,7 2:4,5,6,7 3:4,5,6,7",
    )
}

pub(crate) fn c_m16n8() -> Fragment {
    Fragment::continued(&["0:0,1 1:0,1 2:0,1 3:0,1", "0:2,3 1:2,3 2:2,3 3:2,3"])
}

/// The accumulator of one warp of a `wgmma`: the figure of `c_m16n8` repeated every eight
/// columns, with the elements of the one before plus 4.
pub(crate) fn d_m16(columns: usize) -> Fragment {
    let row = |first: usize| {
        let mut boxes = String::new();
        for tile in 0..columns / 8 {
            for lane in 0..4 {
                let element = first + 4 * tile;
                boxes.push_str(&format!("{lane}:{},{} ", element, element + 1));
            }
        }
        boxes
    };
    Fragment::continued(&[&row(0), &row(2)])
}
