//! Plans are made beside the steps, on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use artel_moe::MoeError;
use artel_moe::eplb::{Cluster, LayerPlan, LayerQuery, Placement, Policy};

use crate::{EngineError, Result};

/// Load of all layers, and where their experts are.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) policy: Arc<dyn Policy>,
    /// `[layers][L]`.
    pub(super) load: Vec<Vec<f64>>,
    /// `[layers]`.
    pub(super) current: Vec<Placement>,
}

/// A plan for each layer.
type Answer = std::result::Result<Vec<LayerPlan>, MoeError>;

/// Answers one question after the other. Its thread ends when it is dropped.
#[derive(Debug)]
pub(super) struct Planner {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Planner {
    pub(super) fn start(cluster: Cluster) -> Result<Self> {
        let (questions, asked) = channel::<Question>();
        let (answered, answers) = channel();
        let work = move || {
            for question in asked {
                if answered.send(question.answer(&cluster)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("artel-eplb".to_owned()).spawn(work)?;
        Ok(Self { questions, answers })
    }

    pub(super) fn ask(&self, question: Question) -> Result<()> {
        self.questions.send(question).map_err(|_| EngineError::PlannerGone)
    }

    /// The next answer, if it is there.
    pub(super) fn poll(&self) -> Result<Option<Vec<LayerPlan>>> {
        match self.answers.try_recv() {
            Ok(answer) => Ok(Some(answer?)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(EngineError::PlannerGone),
        }
    }

    /// The next answer.
    pub(super) fn wait(&self) -> Result<Vec<LayerPlan>> {
        Ok(self.answers.recv().map_err(|_| EngineError::PlannerGone)??)
    }
}

impl Question {
    fn answer(&self, cluster: &Cluster) -> Answer {
        let layers = self.load.iter().zip(&self.current);
        let plan = |(load, current): (&Vec<f64>, &Placement)| match load.iter().sum::<f64>() > 0.0 {
            true => self.policy.plan(&LayerQuery { load, cluster, current }),
            // Nothing is known of the layer.
            false => Ok(LayerPlan::equal(current.clone())),
        };
        layers.map(plan).collect()
    }
}
