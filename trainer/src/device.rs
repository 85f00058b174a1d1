//! Where to compute.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// On the CPU
    #[default]
    Cpu,
    /// On an NVIDIA GPU; training needs a build with the feature `candle-cuda`, a case one with `cuda`
    Cuda,
}

impl Device {
    /// The same for a command of which this build does only the CPU's part.
    ///
    /// # Errors
    /// [`Error::Setting`] for CUDA, unless it is `built`.
    pub fn expect_built(self, built: bool, feature: &str) -> Result<Self> {
        match self {
            Self::Cuda if !built => Err(Error::Setting {
                setting: "device",
                value: "cuda".into(),
                expected: format!("cpu in this build: cuda needs one with the feature `{feature}`"),
            }),
            device => Ok(device),
        }
    }

    /// candle's device: the first GPU for CUDA.
    ///
    /// # Errors
    /// [`Error::Setting`] for CUDA in a build without the feature `candle-cuda`, [`Error::Tensor`]
    /// where there is none.
    pub fn candle(self) -> Result<candle_core::Device> {
        Ok(
            match self.expect_built(cfg!(feature = "candle-cuda"), "candle-cuda")? {
                Self::Cpu => candle_core::Device::Cpu,
                Self::Cuda => candle_core::Device::new_cuda(0)?,
            },
        )
    }
}
