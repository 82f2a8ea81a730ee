//! The replay: reads recorded calls, and decides them anew.

use std::{cmp::Reverse, collections::BinaryHeap, fmt::Write, io};

use toolweir_crds::text::shown;
use toolweir_engine::{Call, CompileOptions, Decision, Effect, Permit, Policy, Problem, ReadsOfCall, Reason, Timestamp};

use crate::{
    argument_store::ArgumentStore,
    audit_line::{CallLine, LineArguments, RecordedLine, value},
    lines::next_line,
    log_engine::{LogEngine, Unknowns},
    names::{CallNames, NamedOperation},
    recording::{RecordedArguments, RecordedCall, Recording},
    report::{ReplayReport, ReportWriter},
    shared_counts::SharedCounts,
};

/// Why calls cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The policies of a log could not be compiled at all.
    #[error("the policies cannot be compiled: {0}")]
    Compile(String),
    /// There are more logs than are told apart.
    #[error("more than {} logs are too many; replay fewer at once", u16::MAX)]
    TooManyLogs,
    /// A log cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(String, io::Error),
    /// Arguments cannot be kept until their calls are decided.
    #[error("cannot keep {0}")]
    Arguments(io::Error),
}

/// A log of a [`Replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(u16);

/// One run of one pod: its log, and what decides its calls.
#[derive(Debug)]
struct ReplayedLog {
    name: String,
    engine: LogEngine,
    lines: u32,
}

/// Calls that are to be decided anew. Add the logs and their lines, and [`Replay::finish`].
#[derive(Debug)]
pub struct Replay {
    logs: Vec<ReplayedLog>,
    names: CallNames,
    recording: Recording,
    arguments: ArgumentStore,
    report: ReportWriter,
}

impl Replay {
    /// Makes a replay without logs, which reports up to `examples` calls of each change.
    pub fn new(examples: usize) -> Self {
        Self {
            logs: Vec::new(),
            names: CallNames::default(),
            recording: Recording::default(),
            arguments: ArgumentStore::default(),
            report: ReportWriter::new(examples),
        }
    }

    /// Adds a log: one run of one pod, with the policies that decide its calls, which keeps `counters` live counts. Also returns what
    /// is wrong with the policies; those that do not compile deny, as in a pod.
    ///
    /// # Errors
    /// There are too many logs.
    pub fn add_log(
        &mut self,
        name: &str,
        policies: &[Policy],
        options: &CompileOptions,
        counters: usize,
    ) -> Result<(LogId, Vec<Problem>), ReplayError> {
        let id = u16::try_from(self.logs.len()).map_err(|_| ReplayError::TooManyLogs)?;
        let (engine, problems) = LogEngine::compile(policies, options, counters);
        self.logs.push(ReplayedLog { name: name.to_owned(), engine, lines: 0 });
        Ok((LogId(id), problems))
    }

    /// Reads all lines of a log.
    ///
    /// # Errors
    /// It cannot be read, or arguments cannot be kept.
    pub fn read(&mut self, log: LogId, from: &mut dyn io::BufRead) -> Result<(), ReplayError> {
        let mut line = Vec::new();
        loop {
            match next_line(from, &mut line) {
                Ok(true) => self.add_line(log, &line)?,
                Ok(false) => return Ok(()),
                Err(error) => {
                    let name = self.logs.get(usize::from(log.0)).map(|log| shown(&log.name).into_owned());
                    return Err(ReplayError::Read(name.unwrap_or_default(), error));
                }
            }
        }
    }

    /// Adds the next line of a log.
    ///
    /// # Errors
    /// Arguments cannot be kept.
    pub fn add_line(&mut self, id: LogId, line: &[u8]) -> Result<(), ReplayError> {
        let Some(log) = self.logs.get_mut(usize::from(id.0)) else { return Ok(()) };
        log.lines = log.lines.saturating_add(1);
        match RecordedLine::read(line) {
            RecordedLine::Call(call) if call.is_beyond_policies() => self.report.beyond_policies(call.reason),
            RecordedLine::Call(call) => self.add_call(id, &call)?,
            RecordedLine::Connection => self.report.skipped.connections += 1,
            RecordedLine::Approval => self.report.skipped.approvals += 1,
            RecordedLine::Other if line.iter().all(u8::is_ascii_whitespace) => {}
            RecordedLine::Other => self.report.skipped.other += 1,
            RecordedLine::Damaged(why) => self.report.damaged(&log.name, log.lines, why),
        }
        Ok(())
    }

    fn add_call(&mut self, id: LogId, call: &CallLine<'_>) -> Result<(), ReplayError> {
        let Some(log) = self.logs.get(usize::from(id.0)) else { return Ok(()) };
        let Some(name) = self.names.number(&call.server, call.operation()) else {
            self.report.unnamed();
            return Ok(());
        };
        let arguments = match call.arguments {
            LineArguments::Hashed => RecordedArguments::Hashed,
            LineArguments::Known(raw) if log.engine.reads_arguments(&call.server, call.operation()) => {
                RecordedArguments::Stored(self.arguments.add(raw.as_str()).map_err(ReplayError::Arguments)?)
            }
            LineArguments::None | LineArguments::Known(_) => RecordedArguments::None,
        };
        self.report.store_silent(call.store_silent);
        self.recording.add(RecordedCall {
            time: call.time,
            session: call.session,
            arguments,
            latency: u32::try_from(call.latency / 1000).unwrap_or(u32::MAX),
            name,
            line: log.lines,
            log: id.0,
            effect: call.effect,
            reason: call.reason,
            approval: call.approval,
            nothing_sent: call.nothing_sent,
            class: call.class,
            pins: call.pins,
        });
        Ok(())
    }

    /// Decides all calls in the order of their times, and returns what changes.
    ///
    /// # Errors
    /// Arguments that were kept cannot be read, or there is no thread for the parser.
    pub fn finish(self) -> Result<ReplayReport, ReplayError> {
        let Self { mut logs, names, recording, arguments, mut report } = self;
        let mut course = Course { shared: SharedCounts::default(), under_way: BinaryHeap::new() };
        let (mut session, mut text) = (String::new(), String::new());
        for (number, recorded) in recording.in_order().enumerate() {
            let Some(log) = logs.get_mut(usize::from(recorded.log)) else { continue };
            let Some(named) = names.get(recorded.name) else { continue };
            session.clear();
            // The hash tells sessions apart as their ids do.
            if let Some(hash) = recorded.session {
                let _ = write!(session, "{hash:016x}");
            }
            let mut call =
                Call { server: &named.server, operation: named.operation(), arguments: None, session: &session, seen: None };
            if let RecordedArguments::Stored(place) = recorded.arguments {
                arguments.read(place, &mut text).map_err(ReplayError::Arguments)?;
                call.arguments = value(&text).ok();
            }
            let (decision, needs) = course.decide(&mut log.engine, &names, &call, recorded)?;
            report.decided(recorded.time, named, counts_places(&decision));
            report.change(&decision, needs, recorded, named, &log.name);
            if let Effect::Allowed(permit) = decision.effect {
                course.go_on(number, permit, recorded);
            }
        }
        let longest = logs.iter().map(|log| log.engine.longest_window).max().unwrap_or_default();
        Ok(report.finish(logs.len(), longest))
    }
}

/// The nanoseconds of a millisecond.
const MILLISECOND: u64 = 1_000_000;

/// Returns true if a call is denied for what other calls use or used.
fn is_want_of_room(reason: Reason) -> bool {
    matches!(reason, Reason::Concurrency | Reason::RateLimit)
}

/// Returns true if a decision depends on how many calls are in flight.
fn counts_places(decision: &Decision) -> bool {
    decision.labels().1 == Reason::Concurrency || matches!(&decision.effect, Effect::Allowed(permit) if permit.holds_places())
}

/// The calls that are under way while others are decided.
struct Course {
    shared: SharedCounts,
    under_way: BinaryHeap<UnderWay>,
}

/// A call that is under way; the one that ends first is the greatest.
struct UnderWay {
    ends: Reverse<(u64, usize)>,
    permit: Permit,
    nothing_sent: bool,
}

impl Course {
    /// Decides on a recorded call.
    fn decide(
        &mut self,
        engine: &mut LogEngine,
        names: &CallNames,
        call: &Call<'_>,
        recorded: &RecordedCall,
    ) -> Result<(Decision, Unknowns), ReplayError> {
        let now = Timestamp(recorded.time);
        let of_call = ReadsOfCall {
            arguments: matches!(recorded.arguments, RecordedArguments::Hashed),
            session: recorded.session.is_some(),
        };
        self.ends_until(recorded.time);
        let chosen = engine.choose(call, of_call, recorded, names).map_err(ReplayError::Compile)?;
        let call = Call { seen: Some(&chosen.seen), ..*call };
        let (engine, needs) = (chosen.engine, chosen.needs);
        if names.get(recorded.name).is_some_and(NamedOperation::is_reference) {
            return Ok((engine.decide_use(&call), Unknowns::default()));
        }
        let decision = self.shared.decide(engine, &call, now);
        // Its time is cut to the millisecond. If it found room, take it to have come after the calls that ended in that millisecond.
        let end_of_millisecond = (recorded.time - recorded.time % MILLISECOND).saturating_add(MILLISECOND - 1);
        let found_room = !is_want_of_room(recorded.reason);
        if !(is_want_of_room(decision.labels().1) && found_room && self.ends_until(end_of_millisecond)) {
            return Ok((decision, needs));
        }
        if let Effect::Allowed(permit) = decision.effect {
            permit.give_back();
        }
        Ok((self.shared.decide(engine, &call, now), needs))
    }

    /// Ends the calls that ended until then. Returns true if there are any.
    fn ends_until(&mut self, now: u64) -> bool {
        let under_way = self.under_way.len();
        while self.under_way.peek().is_some_and(|call| call.ends.0.0 <= now) {
            if let Some(UnderWay { permit, nothing_sent: true, .. }) = self.under_way.pop() {
                permit.give_back();
            }
        }
        self.under_way.len() < under_way
    }

    /// Keeps the permit of a call for as long as the call was under way, if that matters.
    fn go_on(&mut self, number: usize, permit: Permit, recorded: &RecordedCall) {
        if recorded.nothing_sent || permit.holds_places() {
            let ends = Reverse((recorded.end(), number));
            self.under_way.push(UnderWay { ends, permit, nothing_sent: recorded.nothing_sent });
        }
    }
}

impl PartialEq for UnderWay {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends
    }
}

impl Eq for UnderWay {}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.ends.cmp(&other.ends)
    }
}
