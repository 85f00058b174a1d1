//! The reference trainer of hardmix: contrastive training of a small encoder with MoCHi's loss, from
//! images to a report.
//!
//! It uses the public interface of `hardmix` alone. The binary `hardmix` is a thin command line over
//! these modules.

pub mod compare;
pub mod config;
pub mod data;
pub mod error;
pub mod loss;
pub mod metrics;
pub mod plot;
pub mod report;
pub mod run_folder;
pub mod statistics;
pub mod train;
