//! The reference trainer of hardmix: contrastive training of a small encoder with MoCHi's loss, from
//! images to a report.
//!
//! It uses the public interface of `hardmix` alone. The binary `hardmix` is a thin command line over
//! these modules.

pub mod augment;
pub mod checkpoint;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
pub mod encoder;
pub mod error;
pub mod evaluate;
pub mod flags;
pub mod loss;
mod matrix;
pub mod metrics;
pub mod neighbours;
pub mod ops;
pub mod optimiser;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run_folder;
pub mod statistics;
pub mod train;
