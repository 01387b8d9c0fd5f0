//! How far a run is: a bar on a terminal, a line for each step elsewhere.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    step: String,
}

impl Progress {
    pub(crate) fn new(length: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(length as u64);
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, began: Instant::now(), step: String::new() }
    }

    /// A step of a round begins for an engine.
    pub(crate) fn step(&mut self, round: usize, step: &str, engine: &str) {
        let text = format!("round {round}, {step}");
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{text}, {engine}"));
                bar.inc(1);
            }
            None if text != self.step => {
                eprintln!("{:>5.0} s: {text}", self.began.elapsed().as_secs_f64());
                self.step = text;
            }
            None => {}
        }
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
