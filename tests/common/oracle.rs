//! What makes a list of hardest right, whatever its logits are.

use hardmix::NO_ROW;

/// Checks one row of a top-N against the very logits it was taken from: in range, unique,
/// ascending, as many as there are, the smallest selected not below the largest left out, and the
/// lowest indices at a tie. `masked` says which may not appear.
pub fn exact(
    logits: &[f32],
    masked: impl Fn(usize) -> bool,
    hardest: usize,
    indices: &[u32],
) -> Result<(), String> {
    let available = (0..logits.len()).filter(|&j| !masked(j)).count();
    let chosen = well_formed(indices, logits.len(), hardest, available)?;
    let mut selected = vec![false; logits.len()];
    for &j in &chosen {
        if masked(j) {
            return Err(format!("row {j} is masked"));
        }
        selected[j] = true;
    }
    let Some(threshold) = chosen.iter().map(|&j| logits[j]).reduce(f32::min) else {
        return Ok(());
    };
    let last_tied = chosen
        .iter()
        .copied()
        .filter(|&j| logits[j] == threshold)
        .max();
    for j in (0..logits.len()).filter(|&j| !selected[j] && !masked(j)) {
        if logits[j] > threshold {
            return Err(format!(
                "row {j} ({}) is above {threshold}, left out",
                logits[j]
            ));
        }
        if logits[j] == threshold && Some(j) < last_tied {
            return Err(format!("row {j} ties with a later one that was taken"));
        }
    }
    Ok(())
}

/// Checks one row of a top-N against logits that are right to within `error`: every row above the
/// N-th largest by more than twice that is in, none below it by more is.
pub fn within(logits: &[f64], hardest: usize, indices: &[u32], error: f64) -> Result<(), String> {
    let mut sorted: Vec<f64> = logits.to_vec();
    sorted.retain(|&l| l != f64::NEG_INFINITY);
    sorted.sort_by(|a, b| b.total_cmp(a));
    let chosen = well_formed(indices, logits.len(), hardest, sorted.len())?;
    let Some(last) = chosen.len().checked_sub(1) else {
        return Ok(());
    };
    let threshold = sorted[last];
    let mut selected = vec![false; logits.len()];
    chosen.iter().for_each(|&j| selected[j] = true);
    for (j, &l) in logits.iter().enumerate() {
        if selected[j] && (l < threshold - 2.0 * error || l == f64::NEG_INFINITY) {
            return Err(format!("row {j} ({l}) is in, below {threshold}"));
        }
        if !selected[j] && l > threshold + 2.0 * error {
            return Err(format!("row {j} ({l}) is left out, above {threshold}"));
        }
    }
    Ok(())
}

/// The gap between the N-th and the next largest; infinite where there is no next.
pub fn boundary_gap(logits: &[f64], hardest: usize) -> f64 {
    let mut sorted: Vec<f64> = logits.to_vec();
    sorted.retain(|&l| l != f64::NEG_INFINITY);
    sorted.sort_by(|a, b| b.total_cmp(a));
    match hardest {
        0 => f64::INFINITY,
        n if n >= sorted.len() => f64::INFINITY,
        n => sorted[n - 1] - sorted[n],
    }
}

/// The indices without padding, if they are ascending, in range and min(N, available) of them.
fn well_formed(
    indices: &[u32],
    capacity: usize,
    hardest: usize,
    available: usize,
) -> Result<Vec<usize>, String> {
    let count = hardest.min(available);
    if indices.len() != hardest {
        return Err(format!("{} indices; expected {hardest}", indices.len()));
    }
    let (chosen, padding) = indices.split_at(count);
    if padding.iter().any(|&j| j != NO_ROW) {
        return Err(format!(
            "{padding:?} is not padding, with {count} rows to take"
        ));
    }
    if !chosen.is_sorted_by(|a, b| a < b) {
        return Err(format!("{chosen:?} is not strictly ascending"));
    }
    if chosen.last().is_some_and(|&j| j as usize >= capacity) {
        return Err(format!("{chosen:?} leaves the {capacity} rows"));
    }
    Ok(chosen.iter().map(|&j| j as usize).collect())
}
