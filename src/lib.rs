//! Contrastive learning with hard negative mixing (MoCHi, Kalantidis et al., NeurIPS 2020).

mod batch;
mod config;
pub mod cpu;
pub mod draws;
mod error;
mod output;
mod queue;

pub use batch::Batch;
pub use config::{Config, PaperSetting, QueryGradient, Reduction};
pub use draws::{Draws, GivenDraws};
pub use error::{Error, Result};
pub use output::{Metrics, Output, Status};
pub use queue::{DType, NO_LABEL, NO_ROW, Queue, Rows};
