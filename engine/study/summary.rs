//! placeholder until the merge
use super::predict::Answers;
use super::resolve::{Resolved, System};
use super::rows::DataSets;
use super::store::Store;
use super::train::TrainRecord;
use super::*;
use crate::report::document::Report;
use medft_dsl::plan::{Evaluate, Train};
pub struct Evaluation<'a> {
    pub block: &'a Evaluate,
    pub answers: Vec<(System<'a>, Answers)>,
}
pub struct Material<'a> {
    pub resolved: &'a Resolved<'a>,
    pub text: &'a str,
    pub trainings: &'a [(&'a Train, TrainRecord, PathBuf)],
    pub evaluations: &'a [Evaluation<'a>],
}
pub fn report(_: &Material, _: &Store, _: &mut DataSets) -> Result<Report, StudyError> {
    Ok(Report {})
}
pub fn write(_: &Report, _: &Path) -> Result<(), StudyError> {
    Ok(())
}
