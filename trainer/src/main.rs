//! The command line `hardmix`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use hardmix_trainer::error::Result;
use hardmix_trainer::{compare, flags, loss, report, train};

/// Training allocates and frees a few dozen megabytes a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Contrastive learning with hard negative mixing (MoCHi).
///
/// Without a command: `train`, on the embedded part of Fashion-MNIST.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: flags::TrainArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an encoder on images, evaluate it and write a report
    Train(flags::TrainArgs),
    /// Compare MoCo with MoCHi over paired seeds
    Compare(compare::CompareArgs),
    /// Compute loss and gradient of a case in a safetensors file
    Loss(loss::LossArgs),
    /// Write the report of a run folder again
    Report(report::ReportArgs),
}

fn run(cli: Cli) -> Result<()> {
    match cli.command.unwrap_or(Command::Train(cli.train)) {
        Command::Train(args) => train::run(&args, &on_interrupt()),
        Command::Compare(args) => compare::run(&args, &on_interrupt()),
        Command::Loss(args) => loss::run(&args),
        Command::Report(args) => report::run(&args),
    }
}

/// A flag that the first Ctrl-C raises; the second ends the process.
fn on_interrupt() -> Arc<AtomicBool> {
    let interrupt = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&interrupt);
    let handler = ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("ending after this step; again to stop at once");
    });
    if let Err(error) = handler {
        eprintln!("Ctrl-C will not leave a checkpoint: {error}");
    }
    interrupt
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
