//! `hardmix loss`: a case from a safetensors file, for checking an implementation in any language
//! against this one. The format is stable; docs/cases.md states it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use hardmix::{Batch, Config, Draws, GivenDraws, Output, QueryGradient, Queue, Rows, cpu};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::checkpoint::replace;
use crate::device::Device;
use crate::error::{Error, Result};

/// The flags of `hardmix loss`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct LossArgs {
    /// The case: a safetensors file with queries, keys, queue and settings
    pub case: PathBuf,
    /// Where to write loss, gradient and the rest; without it the loss is printed
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
}

/// Computes the case and writes or prints the result.
///
/// # Errors
/// [`Error::Data`] for a case that is not one, [`Error::Loss`] for values that the loss refuses,
/// [`Error::Io`] for a file that cannot be read or written. No file is written then.
pub fn run(args: &LossArgs) -> Result<()> {
    let device = args.device.expect_built(cfg!(feature = "cuda"), "cuda")?;
    let bytes = fs::read(&args.case).map_err(Error::io("read", &args.case))?;
    let wrong = |reason: String| Error::Data {
        path: args.case.clone(),
        reason,
    };
    let case = Case::read(&bytes).map_err(wrong)?;
    let output = case.compute(device)?;
    // A loss that is not a number is an error that names the row, never a result.
    let loss = output.loss()?;
    match &args.out {
        None => println!("{loss}"),
        Some(path) => write(path, &result(&case, &output, loss))?,
    }
    Ok(())
}

/// A case as its file states it.
struct Case {
    config: Config,
    queries: Vec<f32>,
    keys: Vec<f32>,
    dim: usize,
    query_labels: Option<Vec<u32>>,
    queue: Queue,
    draws: Draws,
}

impl Case {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let settings = Settings(header.metadata().clone().unwrap_or_default());
        let config = settings.config()?;
        let tensors = Tensors(&file);

        let ([rows, dim], queries) = tensors.required("queries", Dtype::F32, f32::from_le_bytes)?;
        let (shape, keys) =
            tensors.required::<f32, 4, 2>("keys", Dtype::F32, f32::from_le_bytes)?;
        if shape != [rows, dim] {
            return Err(format!(
                "`keys` has shape {shape:?}; expected [{rows}, {dim}], as `queries`"
            ));
        }
        let mut queue = Queue::from_rows(tensors.queue(dim)?, dim).map_err(|e| e.to_string())?;
        if let Some(([_], labels)) =
            tensors.optional("queue_labels", Dtype::U32, u32::from_le_bytes)?
        {
            queue = queue.with_labels(labels).map_err(|e| e.to_string())?;
        }
        let query_labels = tensors
            .optional::<u32, 4, 1>("query_labels", Dtype::U32, u32::from_le_bytes)?
            .map(|(_, labels)| labels);
        let draws = draws(&settings, &tensors, &config, rows)?;
        Ok(Self {
            config,
            queries,
            keys,
            dim,
            query_labels,
            queue,
            draws,
        })
    }

    fn compute(&self, device: Device) -> Result<Output> {
        let mut batch = Batch::new(&self.queries, &self.keys, self.dim)?;
        if let Some(labels) = &self.query_labels {
            batch = batch.with_labels(labels)?;
        }
        Ok(match device {
            #[cfg(feature = "cuda")]
            Device::Cuda => {
                let device = hardmix::cuda::Device::new(0)?;
                let queue = hardmix::cuda::Queue::from_host(&device, &self.queue)?;
                let mut step = hardmix::cuda::Step::new(&device, self.config.clone())?;
                step.run_from_host(&batch, &queue, &self.draws)?
            }
            _ => cpu::Step::new(self.config.clone()).run(&batch, &self.queue, &self.draws)?,
        })
    }
}

/// The file's metadata.
struct Settings(HashMap<String, String>);

impl Settings {
    fn get<T: std::str::FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, String> {
        let Some(text) = self.0.get(key) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| format!("`{key}` is `{text}`; expected {expected}"))
    }

    fn required<T: std::str::FromStr>(&self, key: &str, expected: &str) -> Result<T, String> {
        self.get(key, expected)?
            .ok_or_else(|| format!("has no `{key}` in its metadata; expected {expected}"))
    }

    fn config(&self) -> Result<Config, String> {
        let count = "a count, as a decimal string";
        let refused = |error: hardmix::Error| error.to_string();
        let config = Config::mochi(
            self.required("hardest", count)?,
            self.required("mixed", count)?,
            self.required("query_mixed", count)?,
        )
        .map_err(refused)?;
        let temperature = self.required("temperature", "a number")?;
        let query_gradient = match self.0.get("query_gradient").map(String::as_str) {
            None | Some("detached") => QueryGradient::Detached,
            Some("attached") => QueryGradient::Attached,
            Some(other) => {
                return Err(format!(
                    "`query_gradient` is `{other}`; expected `detached` or `attached`"
                ));
            }
        };
        Ok(config
            .with_temperature(temperature)
            .map_err(refused)?
            .with_query_gradient(query_gradient)
            .with_oracle(self.get("oracle", "`true` or `false`")?.unwrap_or(false)))
    }
}

/// A tensor's shape and elements.
type Shaped<T, const RANK: usize> = ([usize; RANK], Vec<T>);

/// The file's tensors.
struct Tensors<'a>(&'a SafeTensors<'a>);

impl Tensors<'_> {
    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        self.0.tensor(name).ok()
    }

    fn optional<T, const SIZE: usize, const RANK: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        element: fn([u8; SIZE]) -> T,
    ) -> Result<Option<Shaped<T, RANK>>, String> {
        let Some(view) = self.view(name) else {
            return Ok(None);
        };
        let shape = <[usize; RANK]>::try_from(view.shape()).map_err(|_| {
            format!(
                "`{name}` has shape {:?}; expected {RANK} axes",
                view.shape()
            )
        })?;
        if view.dtype() != dtype {
            return Err(format!(
                "`{name}` has type {:?}; expected {dtype:?}",
                view.dtype()
            ));
        }
        Ok(Some((shape, elements(&view, element))))
    }

    fn required<T, const SIZE: usize, const RANK: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        element: fn([u8; SIZE]) -> T,
    ) -> Result<Shaped<T, RANK>, String> {
        self.optional(name, dtype, element)?
            .ok_or_else(|| format!("has no tensor `{name}`"))
    }

    fn queue(&self, dim: usize) -> Result<Rows, String> {
        let view = self.view("queue").ok_or("has no tensor `queue`")?;
        if view.shape().len() != 2 || view.shape()[1] != dim {
            return Err(format!(
                "`queue` has shape {:?}; expected [K, {dim}]",
                view.shape()
            ));
        }
        match view.dtype() {
            Dtype::F32 => Ok(Rows::F32(elements(&view, f32::from_le_bytes))),
            Dtype::F16 => Ok(Rows::F16(elements(&view, f16::from_le_bytes))),
            Dtype::BF16 => Ok(Rows::Bf16(elements(&view, bf16::from_le_bytes))),
            other => Err(format!(
                "`queue` has type {other:?}; expected F32, F16 or BF16"
            )),
        }
    }

    /// One of the tensors of draws: [rows, width], or empty where nothing is drawn.
    fn draw<T>(
        &self,
        name: &str,
        dtype: Dtype,
        element: fn([u8; 4]) -> T,
        (rows, width): (usize, usize),
    ) -> Result<Vec<T>, String> {
        match self.optional(name, dtype, element)? {
            Some((shape, values)) if shape == [rows, width] => Ok(values),
            Some((shape, _)) => Err(format!(
                "`{name}` has shape {shape:?}; expected [{rows}, {width}]"
            )),
            None if width == 0 => Ok(Vec::new()),
            None => Err(format!(
                "has neither draws (`{name}`) nor `seed` and `step`"
            )),
        }
    }
}

fn elements<T, const SIZE: usize>(view: &TensorView<'_>, element: fn([u8; SIZE]) -> T) -> Vec<T> {
    view.data()
        .as_chunks::<SIZE>()
        .0
        .iter()
        .map(|&bytes| element(bytes))
        .collect()
}

/// The case's draws: written out, or by seed and step; never both. Where nothing is drawn, either,
/// both and neither are the same.
fn draws(
    settings: &Settings,
    tensors: &Tensors<'_>,
    config: &Config,
    rows: usize,
) -> Result<Draws, String> {
    let number = "an unsigned number, as a decimal string";
    let seed: Option<u64> = settings.get("seed", number)?;
    let step: Option<u64> = settings.get("step", number)?;
    let given = ["first", "second", "alpha", "pick", "beta"];
    let written = given.iter().find(|name| tensors.view(name).is_some());
    let drawn = config.mixed() > 0 || config.query_mixed() > 0;
    match (seed, step, written) {
        (Some(_), None, _) if drawn => Err("has a `seed` but no `step`".into()),
        (None, Some(_), _) if drawn => Err("has a `step` but no `seed`".into()),
        (Some(_), Some(_), Some(name)) if drawn => Err(format!(
            "has both draws (`{name}`) and `seed` with `step`; expected one of them"
        )),
        (Some(seed), Some(step), None) => Draws::seeded(seed, step).map_err(|e| e.to_string()),
        _ => {
            let mixed = (rows, config.mixed());
            let query_mixed = (rows, config.query_mixed());
            Ok(Draws::given(GivenDraws {
                first: tensors.draw("first", Dtype::U32, u32::from_le_bytes, mixed)?,
                second: tensors.draw("second", Dtype::U32, u32::from_le_bytes, mixed)?,
                alpha: tensors.draw("alpha", Dtype::F32, f32::from_le_bytes, mixed)?,
                pick: tensors.draw("pick", Dtype::U32, u32::from_le_bytes, query_mixed)?,
                beta: tensors.draw("beta", Dtype::F32, f32::from_le_bytes, query_mixed)?,
            }))
        }
    }
}

/// A tensor of the result.
struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn result(case: &Case, output: &Output, loss: f32) -> Vec<Tensor> {
    let rows = output.loss_rows.len();
    let config = &case.config;
    let f32s = |name, shape, values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor {
            name,
            dtype: Dtype::F32,
            shape,
            bytes,
        }
    };
    let u32s = |name, shape, values: &[u32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor {
            name,
            dtype: Dtype::U32,
            shape,
            bytes,
        }
    };
    let bools = |name, values: &[bool]| {
        let bytes = values.iter().map(|&x| u8::from(x)).collect();
        Tensor {
            name,
            dtype: Dtype::U8,
            shape: vec![rows],
            bytes,
        }
    };
    let mixed = || vec![rows, config.mixed()];
    let query_mixed = || vec![rows, config.query_mixed()];
    let mut tensors = vec![
        f32s("loss", vec![1], &[loss]),
        f32s("loss_rows", vec![rows], &output.loss_rows),
        f32s("grad_queries", vec![rows, case.dim], &output.grad_queries),
        f32s("mixed_logits", mixed(), &output.mixed_logits),
        f32s(
            "query_mixed_logits",
            query_mixed(),
            &output.query_mixed_logits,
        ),
        u32s("hardest", vec![rows, config.hardest()], &output.hardest),
        bools("hits", &output.hits),
        bools("hits_with_synthetic", &output.hits_with_synthetic),
    ];
    if matches!(case.draws, Draws::Seeded { .. }) {
        let draws = &output.draws;
        tensors.extend([
            u32s("first", mixed(), &draws.first),
            u32s("second", mixed(), &draws.second),
            f32s("alpha", mixed(), &draws.alpha),
            u32s("pick", query_mixed(), &draws.pick),
            f32s("beta", query_mixed(), &draws.beta),
        ]);
    }
    tensors
}

/// Writes the file; a failure leaves none.
fn write(path: &Path, tensors: &[Tensor]) -> Result<()> {
    let views = tensors.iter().map(|tensor| {
        TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
            .map(|view| (tensor.name, view))
    });
    let bytes = views
        .collect::<Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|error| Error::Data {
            path: path.into(),
            reason: error.to_string(),
        })?;
    replace(path, &bytes)
}
