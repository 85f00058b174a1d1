//! The two operations that candle's CPU backend is slow at: convolution, as im2col and matrix product
//! over a few images at a time, and group norm with an optional ReLU. Both on rayon.
//!
//! Work is cut by shape alone and partial sums are added in order, so that results have the same bits
//! for every number of threads. On other devices both fall back to candle's own operations.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::matrix::{Matrix, product};

/// The square convolution of `x` [B, C, H, W] with `weight` [O, C, k, k].
///
/// # Errors
/// Where the shapes do not fit, a tensor is not contiguous, or its type is not f32.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(weight, Conv2d { stride, padding })
    } else {
        x.conv2d(weight, padding, stride, 1, 1)
    }
}

/// Group norm of `x` [B, C, …] over `groups` groups of channels (Wu and He, "Group Normalization",
/// 2018, ε = 1e-5) with `scale` and `shift` `[C]`, and then a ReLU if asked for.
///
/// # Errors
/// As for [`conv2d`], and where the groups do not divide the channels.
pub fn group_norm(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    groups: usize,
    relu: bool,
) -> Result<Tensor> {
    let op = GroupNorm { groups, relu };
    if x.device().is_cpu() {
        x.apply_op3(scale, shift, op)
    } else {
        op.composed(x, scale, shift)
    }
}

const EPSILON: f32 = 1e-5;

/// Columns that one matrix product should have at least: 16 images of a 4×4 map. Of 64 to 1024, 256
/// was the fastest for the default encoder, within 3 % of its neighbours.
const COLUMNS: usize = 256;

/// Into so many parts the images of a batch are cut for the sums over all of them.
const PARTS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Conv2d {
    stride: usize,
    padding: usize,
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    filters: usize,
    kernel: usize,
    out_height: usize,
    out_width: usize,
    stride: usize,
    padding: usize,
}

impl Sizes {
    fn new(op: &Conv2d, x: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        let (filters, in_channels, kernel, kernel_width) = weight.dims4()?;
        let (padded_height, padded_width) = (height + 2 * op.padding, width + 2 * op.padding);
        if in_channels != channels || kernel != kernel_width || op.stride == 0 {
            bail!(
                "conv2d: x is {x:?}, weight {weight:?}, stride {}",
                op.stride
            );
        }
        if kernel == 0 || x.elem_count() == 0 || kernel > padded_height.min(padded_width) {
            bail!("conv2d: x is {x:?}, smaller than the weight's {weight:?}");
        }
        Ok(Self {
            batch,
            channels,
            height,
            width,
            filters,
            kernel,
            out_height: (padded_height - kernel) / op.stride + 1,
            out_width: (padded_width - kernel) / op.stride + 1,
            stride: op.stride,
            padding: op.padding,
        })
    }

    fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    fn positions(&self) -> usize {
        self.out_height * self.out_width
    }

    fn out_image(&self) -> usize {
        self.filters * self.positions()
    }

    /// C·k², the length of a filter.
    fn taps(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Images that share a matrix product.
    fn images_per_product(&self) -> usize {
        COLUMNS.div_ceil(self.positions())
    }

    fn out_shape(&self) -> Shape {
        (self.batch, self.filters, self.out_height, self.out_width).into()
    }

    /// Calls `visit` with the runs of taps that lie within the image: for each channel, kernel row,
    /// kernel column and output row, the output columns that read pixels and no padding.
    fn for_each_run(&self, mut visit: impl FnMut(Run)) {
        for channel in 0..self.channels {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let tap = (channel * self.kernel + ky) * self.kernel + kx;
                    // Output column o reads input column o·stride + kx − padding.
                    let first = self.padding.saturating_sub(kx).div_ceil(self.stride);
                    let end = (self.width + self.padding)
                        .saturating_sub(kx)
                        .div_ceil(self.stride);
                    let (first, end) = (first.min(self.out_width), end.min(self.out_width));
                    for oy in 0..self.out_height {
                        let y = oy * self.stride + ky;
                        if first >= end || y < self.padding || y - self.padding >= self.height {
                            continue;
                        }
                        let row = (channel * self.height + y - self.padding) * self.width;
                        visit(Run {
                            tap,
                            column: oy * self.out_width + first,
                            count: end - first,
                            source: row + first * self.stride + kx - self.padding,
                        });
                    }
                }
            }
        }
    }

    /// Fills `columns` [taps, images·positions] from `images`.
    fn unfold(&self, images: &[f32], columns: &mut Vec<f32>) {
        let count = images.len() / self.image();
        let pitch = count * self.positions();
        columns.clear();
        columns.resize(self.taps() * pitch, 0.0);
        for (index, image) in images.chunks_exact(self.image()).enumerate() {
            self.for_each_run(|run| {
                let at = run.tap * pitch + index * self.positions() + run.column;
                let to = &mut columns[at..at + run.count];
                if self.stride == 1 {
                    to.copy_from_slice(&image[run.source..run.source + run.count]);
                } else {
                    let from = image[run.source..].iter().step_by(self.stride);
                    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
                }
            });
        }
    }

    /// Adds `columns` [taps, images·positions] back to where [`Sizes::unfold`] read them.
    fn fold(&self, columns: &[f32], images: &mut [f32]) {
        let pitch = images.len() / self.image() * self.positions();
        for (index, image) in images.chunks_exact_mut(self.image()).enumerate() {
            self.for_each_run(|run| {
                let at = run.tap * pitch + index * self.positions() + run.column;
                let to = image[run.source..].iter_mut().step_by(self.stride);
                to.zip(&columns[at..at + run.count])
                    .for_each(|(to, &from)| *to += from);
            });
        }
    }

    /// Exchanges the first two dimensions of `from` [a, b, positions] into `to` [b, a, positions].
    fn exchange(&self, from: &[f32], to: &mut [f32], a: usize, b: usize) {
        let size = self.positions();
        for i in 0..a {
            for j in 0..b {
                to[(j * a + i) * size..][..size]
                    .copy_from_slice(&from[(i * b + j) * size..][..size]);
            }
        }
    }
}

/// Neighbouring output columns that read input at steps of the stride.
#[derive(Debug, Clone, Copy)]
struct Run {
    tap: usize,
    column: usize,
    count: usize,
    source: usize,
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout, what: &str) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("{what} is not contiguous"),
    }
}

/// Calls `with` with the elements of contiguous f32 tensors on the CPU.
fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    with: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut slices: [&[f32]; N] = [&[]; N];
    for (to, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cpu(storage) => *to = slice(storage, layout, "a gradient")?,
            _ => bail!("a tensor left the CPU"),
        }
    }
    with(slices)
}

/// Sums vectors of equal length, in order.
fn sum_in_order(parts: Vec<Vec<f32>>) -> Vec<f32> {
    parts
        .into_iter()
        .reduce(|mut sum, part| {
            sum.iter_mut()
                .zip(&part)
                .for_each(|(sum, part)| *sum += part);
            sum
        })
        .unwrap_or_default()
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d-im2col"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(self, x_layout.shape(), weight_layout.shape())?;
        let (x, weight) = (
            slice(x, x_layout, "x")?,
            slice(weight, weight_layout, "weight")?,
        );
        let mut out = vec![0.0; sizes.batch * sizes.out_image()];
        let images = sizes.images_per_product();
        out.par_chunks_mut(images * sizes.out_image())
            .zip(x.par_chunks(images * sizes.image()))
            .for_each_init(
                <(Vec<f32>, Vec<f32>)>::default,
                |(columns, products), (out, x)| {
                    let count = x.len() / sizes.image();
                    let n = count * sizes.positions();
                    sizes.unfold(x, columns);
                    products.resize(sizes.filters * n, 0.0);
                    let dims = (sizes.filters, n, sizes.taps());
                    let left = Matrix::new(weight, sizes.taps());
                    product(products, dims, left, Matrix::new(columns, n), false);
                    sizes.exchange(products, out, sizes.filters, count);
                },
            );
        Ok((CpuStorage::F32(out), sizes.out_shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(self, x.shape(), weight.shape())?;
        let want_x = x.track_op();
        let mut grad_x = vec![0.0; if want_x { x.elem_count() } else { 0 }];
        let grad = grad.contiguous()?;
        let grad_weight = with_slices([x, weight, &grad], |[xs, weights, grads]| {
            let part = sizes.batch.div_ceil(PARTS);
            let mut x_parts: Vec<Option<&mut [f32]>> = if want_x {
                grad_x.chunks_mut(part * sizes.image()).map(Some).collect()
            } else {
                (0..sizes.batch.div_ceil(part)).map(|_| None).collect()
            };
            let parts = x_parts
                .par_iter_mut()
                .zip(xs.par_chunks(part * sizes.image()))
                .zip(grads.par_chunks(part * sizes.out_image()))
                .map(|((grad_x, x), grad)| sizes.backward(weights, x, grad, grad_x.as_deref_mut()))
                .collect();
            Ok(sum_in_order(parts))
        })?;
        let grad_weight = Tensor::from_vec(grad_weight, weight.shape(), weight.device())?;
        let grad_x = want_x
            .then(|| Tensor::from_vec(grad_x, x.shape(), x.device()))
            .transpose()?;
        Ok((grad_x, Some(grad_weight)))
    }
}

impl Sizes {
    /// The weight's gradient over some images; theirs is added to `grad_x` where wanted.
    fn backward(
        &self,
        weight: &[f32],
        x: &[f32],
        grad: &[f32],
        mut grad_x: Option<&mut [f32]>,
    ) -> Vec<f32> {
        let taps = self.taps();
        let mut grad_weight = vec![0.0; self.filters * taps];
        let (mut columns, mut grads, mut grad_columns) = (Vec::new(), Vec::new(), Vec::new());
        let images = self.images_per_product();
        let x_chunks = x.chunks(images * self.image());
        let grad_chunks = grad.chunks(images * self.out_image());
        for (index, (x, grad)) in x_chunks.zip(grad_chunks).enumerate() {
            let count = x.len() / self.image();
            let n = count * self.positions();
            grads.resize(grad.len(), 0.0);
            self.exchange(grad, &mut grads, count, self.filters);
            self.unfold(x, &mut columns);
            let left = Matrix::new(&grads, n);
            let right = Matrix::new(&columns, n).transposed();
            product(
                &mut grad_weight,
                (self.filters, taps, n),
                left,
                right,
                index > 0,
            );
            if let Some(grad_x) = &mut grad_x {
                grad_columns.resize(taps * n, 0.0);
                let left = Matrix::new(weight, taps).transposed();
                let dims = (taps, n, self.filters);
                product(&mut grad_columns, dims, left, Matrix::new(&grads, n), false);
                let start = index * images * self.image();
                self.fold(&grad_columns, &mut grad_x[start..start + x.len()]);
            }
        }
        grad_weight
    }
}

#[derive(Debug, Clone, Copy)]
struct GroupNorm {
    groups: usize,
    relu: bool,
}

/// Sums of f(element) in 16 lanes, which the compiler keeps in vector registers.
fn lane_sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = count - count % 16;
    for start in (0..whole).step_by(16) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    (whole..count).map(f).sum::<f32>() + lanes.iter().sum::<f32>()
}

/// Mean and 1/√(variance + ε), the variance from the centred elements.
fn statistics(x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = lane_sum(x.len(), |i| x[i]) / count;
    let variance = lane_sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / count;
    (mean, (variance + EPSILON).sqrt().recip())
}

impl GroupNorm {
    /// (channels, positions) of an image.
    fn dims(&self, x: &Shape, scale: &Shape, shift: &Shape) -> Result<(usize, usize)> {
        let channels = if x.rank() < 2 { 0 } else { x.dims()[1] };
        let fits = scale.dims() == [channels] && shift.dims() == [channels];
        if x.elem_count() == 0 || !fits || self.groups == 0 || channels % self.groups != 0 {
            bail!(
                "group_norm: x {x:?}, scale {scale:?}, shift {shift:?}, {} groups",
                self.groups
            );
        }
        Ok((channels, x.dims()[2..].iter().product()))
    }

    /// The same from candle's own operations.
    fn composed(&self, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let (channels, _) = self.dims(x.shape(), scale.shape(), shift.shape())?;
        let batch = x.dim(0)?;
        let grouped = x.reshape((batch, self.groups, x.elem_count() / batch / self.groups))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let unit = centred.broadcast_div(&(variance + f64::from(EPSILON))?.sqrt()?)?;
        let mut wide = vec![1; x.rank()];
        wide[1] = channels;
        let out = unit
            .reshape(x.shape())?
            .broadcast_mul(&scale.reshape(wide.as_slice())?)?
            .broadcast_add(&shift.reshape(wide.as_slice())?)?;
        if self.relu { out.relu() } else { Ok(out) }
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm-relu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shapes = [x_layout.shape(), scale_layout.shape(), shift_layout.shape()];
        let (channels, positions) = self.dims(shapes[0], shapes[1], shapes[2])?;
        let x = slice(x, x_layout, "x")?;
        let scale = slice(scale, scale_layout, "scale")?;
        let shift = slice(shift, shift_layout, "shift")?;
        let mut out = vec![0.0; x.len()];
        let group = channels / self.groups * positions;
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        out.par_chunks_mut(channels * positions)
            .zip(x.par_chunks(channels * positions))
            .for_each(|(out, x)| {
                for (index, (out, x)) in out.chunks_mut(group).zip(x.chunks(group)).enumerate() {
                    let (mean, inverse) = statistics(x);
                    let first = index * (channels / self.groups);
                    let planes = out
                        .chunks_mut(positions)
                        .zip(x.chunks(positions))
                        .enumerate();
                    for (channel, (out, x)) in planes {
                        let slope = scale[first + channel] * inverse;
                        let offset = shift[first + channel] - mean * slope;
                        for (out, x) in out.iter_mut().zip(x) {
                            let value = x * slope + offset;
                            // Not `max`, which would turn a NaN into 0.
                            *out = if value < floor { floor } else { value };
                        }
                    }
                }
            });
        Ok((CpuStorage::F32(out), shapes[0].clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (channels, positions) = self.dims(x.shape(), scale.shape(), shift.shape())?;
        let grad = grad.contiguous()?;
        let mut grad_x = vec![0.0; x.elem_count()];
        let sums = with_slices([x, scale, out, &grad], |[x, scale, out, grad]| {
            let size = channels * positions;
            let part = (x.len() / size).div_ceil(PARTS);
            let parts = grad_x
                .par_chunks_mut(part * size)
                .zip(x.par_chunks(part * size))
                .zip(
                    out.par_chunks(part * size)
                        .zip(grad.par_chunks(part * size)),
                )
                .map(|((grad_x, x), (out, grad))| {
                    let mut sums = vec![0.0; 2 * channels];
                    let inner = grad_x.chunks_mut(size).zip(x.chunks(size));
                    for ((grad_x, x), (out, grad)) in
                        inner.zip(out.chunks(size).zip(grad.chunks(size)))
                    {
                        self.backward(positions, scale, x, out, grad, grad_x, &mut sums);
                    }
                    sums
                })
                .collect();
            Ok(sum_in_order(parts))
        })?;
        let device = x.device();
        let grad_scale = Tensor::from_slice(&sums[..channels], channels, device)?;
        let grad_shift = Tensor::from_slice(&sums[channels..], channels, device)?;
        let grad_x = Tensor::from_vec(grad_x, x.shape(), device)?;
        Ok((Some(grad_x), Some(grad_scale), Some(grad_shift)))
    }
}

impl GroupNorm {
    /// One image: its gradient, and its share of the scale's and the shift's, added to `sums` [2C].
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        positions: usize,
        scale: &[f32],
        x: &[f32],
        out: &[f32],
        grad: &[f32],
        grad_x: &mut [f32],
        sums: &mut [f32],
    ) {
        let per_group = scale.len() / self.groups;
        let group = per_group * positions;
        let (scale_sums, shift_sums) = sums.split_at_mut(scale.len());
        for index in 0..self.groups {
            let span = index * group..(index + 1) * group;
            let (mean, inverse) = statistics(&x[span.clone()]);
            // With u the gradient at the normalised x̂: dx = (u − mean(u) − x̂·mean(u·x̂))/σ.
            let (mut sum, mut sum_with_x) = (0.0, 0.0);
            for channel in index * per_group..(index + 1) * per_group {
                let plane = channel * positions..(channel + 1) * positions;
                let (x, out, grad) = (&x[plane.clone()], &out[plane.clone()], &grad[plane.clone()]);
                let through = |i: usize| {
                    if self.relu && out[i] <= 0.0 {
                        0.0
                    } else {
                        grad[i]
                    }
                };
                let total = lane_sum(positions, through);
                let total_with_x = lane_sum(positions, |i| through(i) * (x[i] - mean)) * inverse;
                shift_sums[channel] += total;
                scale_sums[channel] += total_with_x;
                sum += total * scale[channel];
                sum_with_x += total_with_x * scale[channel];
            }
            let (sum, sum_with_x) = (sum / group as f32, sum_with_x / group as f32);
            for (channel, &slope) in scale
                .iter()
                .enumerate()
                .skip(index * per_group)
                .take(per_group)
            {
                let plane = channel * positions..(channel + 1) * positions;
                let (x, out, grad) = (&x[plane.clone()], &out[plane.clone()], &grad[plane.clone()]);
                for (i, to) in grad_x[plane].iter_mut().enumerate() {
                    let through = if self.relu && out[i] <= 0.0 {
                        0.0
                    } else {
                        grad[i]
                    };
                    let unit = (x[i] - mean) * inverse;
                    *to = (through * slope - sum - unit * sum_with_x) * inverse;
                }
            }
        }
    }
}
