//! What a suggested policy says of each tool.

use std::collections::HashSet;

use toolweir_crds::{
    ToolClass,
    bounds::{MAX, TOOL_NAME},
    tool_name,
};

use super::observations::{Observations, SeenCalls, WINDOWS};

/// The longest name of a tool that is repeated in the reason of its denial.
const LONGEST_IN_REASON: usize = 64;

/// A tool, as far as its rule depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolFacts {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: ToolClass,
    /// Why it has this class, in words; may be empty.
    pub why: String,
}

/// An entry of a suggested policy, or a tool that has none and so is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuggestedEntry {
    /// What stands above it.
    pub comments: Vec<String>,
    /// Its name and its rule; none where a policy cannot hold the name.
    pub rule: Option<(String, SuggestedRule)>,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuggestedRule {
    /// The tool may be called, at most so many times in each window.
    Allow(Vec<SuggestedLimit>),
    /// It may not, for this reason.
    Deny(String),
}

/// At most `max` calls in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuggestedLimit {
    /// The most calls.
    pub max: u64,
    /// The window, as policies write it.
    pub window: &'static str,
}

/// The calls a minute that a class is allowed; none where it is denied.
fn calls_a_minute(class: ToolClass) -> Option<u64> {
    match class {
        ToolClass::Read => Some(60),
        ToolClass::Write => Some(30),
        ToolClass::Execute => Some(10),
        ToolClass::Destructive | ToolClass::Financial | ToolClass::Unknown => None,
    }
}

/// Suggests by the classes alone: an entry for each tool, in their order.
pub fn by_class(tools: &[ToolFacts]) -> Vec<SuggestedEntry> {
    let entry = |tool: &ToolFacts| {
        let rule = match calls_a_minute(tool.class) {
            Some(max) => SuggestedRule::Allow(vec![SuggestedLimit { max, window: "minute" }]),
            None => SuggestedRule::Deny(reason(tool)),
        };
        with_name(&tool.name, vec![class_comment(tool)], rule)
    };
    tools.iter().map(entry).collect()
}

/// Suggests by what agents did: an entry for each tool of the server of which calls were let through, in the order of the server's list;
/// those that it does not list come last. Also returns how many listed tools have none.
pub fn by_use(tools: &[ToolFacts], server: &str, observed: &Observations) -> (Vec<SuggestedEntry>, usize) {
    let called: HashSet<&str> = observed.tools(server).map(|(tool, _)| tool).collect();
    let listed: HashSet<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    let entry = |name: &str, first: String| {
        let seen = observed.counted(server, name);
        let comments = vec![first, use_comment(seen, observed)];
        with_name(name, comments, SuggestedRule::Allow(fitted(seen)))
    };
    let mut entries: Vec<SuggestedEntry> = Vec::new();
    for tool in tools.iter().filter(|tool| called.contains(tool.name.as_str())) {
        let doubt = match tool.class {
            ToolClass::Read | ToolClass::Write => "",
            ToolClass::Execute | ToolClass::Destructive | ToolClass::Financial | ToolClass::Unknown => {
                ". It was called, so it is allowed: look at it"
            }
        };
        entries.push(entry(&tool.name, format!("{}{doubt}", class_comment(tool))));
    }
    for (name, _) in observed.tools(server).filter(|(name, _)| !listed.contains(name)) {
        entries.push(entry(
            name,
            "Not among the tools that the server lists. It was called, so it is allowed: look at it".to_owned(),
        ));
    }
    let uncalled = tools.iter().filter(|tool| !called.contains(tool.name.as_str())).count();
    (entries, uncalled)
}

/// The limits for what was seen: of each window, the largest number that is less than twice the peak, so that who goes on as before is
/// not denied, and who goes twice as fast is. Nothing is known of windows that are longer than the time that each of its pods was observed.
fn fitted(seen: SeenCalls) -> Vec<SuggestedLimit> {
    let most = u64::try_from(MAX).unwrap_or(u64::MAX);
    let limit = |(window, peak): (&'static str, u64)| {
        let max = peak.saturating_mul(2).saturating_sub(1).clamp(1, most);
        SuggestedLimit { max, window }
    };
    known_peaks(seen).map(limit).collect()
}

/// The windows of which something is known, with their peaks. The minute always counts as one.
fn known_peaks(seen: SeenCalls) -> impl Iterator<Item = (&'static str, u64)> {
    let known = move |((window, length), _): &((&str, u64), u64)| *window == "minute" || *length <= seen.seconds;
    WINDOWS.into_iter().zip(seen.peaks).filter(known).map(|((window, _), peak)| (window, peak))
}

fn use_comment(seen: SeenCalls, observed: &Observations) -> String {
    let (calls, pod) = (if seen.calls == 1 { "call" } else { "calls" }, if observed.pods > 1 { " of one pod" } else { "" });
    let in_a = |window| if window == "hour" { "an hour".to_owned() } else { format!("a {window}") };
    let peaks = known_peaks(seen).map(|(window, peak)| format!("{peak} in {}", in_a(window)));
    format!("{} {calls}; at most {}{pod}", seen.calls, peaks.collect::<Vec<_>>().join(", "))
}

fn class_comment(tool: &ToolFacts) -> String {
    let (class, severity) = (tool.class.as_str(), tool.class.severity().as_str());
    let why = if tool.why.is_empty() { String::new() } else { format!(": {}", tool.why) };
    format!("{class} ({severity}){why}")
}

/// What the model is told, and what helps.
fn reason(tool: &ToolFacts) -> String {
    let is_short = tool.name.len() <= LONGEST_IN_REASON && tool.name.chars().all(|c| c.is_alphanumeric() || "_-./:".contains(c));
    let name = if is_short { &tool.name } else { "This tool" };
    match tool.class {
        ToolClass::Unknown => {
            format!("What {} does is not known. Ask the platform team to allow it.", if is_short { name } else { "this tool" })
        }
        class => format!("{name} is classed as {}. Ask the platform team to allow it.", class.as_str()),
    }
}

/// The entry for a tool, or a comment where a policy cannot hold its name.
fn with_name(tool: &str, mut comments: Vec<String>, rule: SuggestedRule) -> SuggestedEntry {
    let name = tool_name::exactly(tool);
    let why = if tool.contains(char::is_control) {
        Some("has a control character".to_owned())
    } else {
        (name.len() > TOOL_NAME).then(|| format!("has more than {TOOL_NAME} bytes"))
    };
    match why {
        None => SuggestedEntry { comments, rule: Some((name, rule)) },
        Some(why) => {
            let shown = toolweir_crds::text::escaped(tool, LONGEST_IN_REASON);
            comments.push(format!("`{shown}` is denied: the name {why}, so no entry can name it."));
            SuggestedEntry { comments, rule: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use toolweir_crds::observed::{ObservedResponse, ObservedTool};

    use super::*;

    fn tool(name: &str, class: ToolClass) -> ToolFacts {
        ToolFacts { name: name.to_owned(), class, why: String::new() }
    }

    fn seen(name: &str, calls: u64, [peak_minute, peak_hour, peak_day]: [u64; 3]) -> ObservedTool {
        ObservedTool { server: "s".to_owned(), tool: name.to_owned(), calls, denied: 0, peak_minute, peak_hour, peak_day }
    }

    fn observed(seconds: u64, tools: Vec<ObservedTool>) -> Observations {
        let mut observed = Observations::default();
        observed.add(&ObservedResponse { seconds, tools, ..ObservedResponse::default() });
        observed
    }

    fn limits(entry: &SuggestedEntry) -> Vec<(u64, &'static str)> {
        match &entry.rule {
            Some((_, SuggestedRule::Allow(limits))) => limits.iter().map(|limit| (limit.max, limit.window)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_class_has_its_rule() {
        for (class, max) in [(ToolClass::Read, 60), (ToolClass::Write, 30), (ToolClass::Execute, 10)] {
            assert_eq!(limits(&by_class(&[tool("t", class)])[0]), [(max, "minute")]);
        }
        for (class, expected) in [
            (ToolClass::Destructive, "t is classed as Destructive. Ask the platform team to allow it."),
            (ToolClass::Financial, "t is classed as Financial. Ask the platform team to allow it."),
            (ToolClass::Unknown, "What t does is not known. Ask the platform team to allow it."),
        ] {
            let entry = by_class(&[tool("t", class)]).remove(0);
            assert_eq!(entry.rule, Some(("t".to_owned(), SuggestedRule::Deny(expected.to_owned()))));
        }
        let strange = by_class(&[tool("say \"yes\" now", ToolClass::Financial)]).remove(0);
        let told = "This tool is classed as Financial. Ask the platform team to allow it.".to_owned();
        assert_eq!(strange.rule, Some(("say \"yes\" now".to_owned(), SuggestedRule::Deny(told))));
    }

    #[test]
    fn stars_and_backslashes_are_those_of_the_name_and_other_names_have_no_entry() {
        assert_eq!(by_class(&[tool(r"2*3\", ToolClass::Read)])[0].rule.as_ref().unwrap().0, r"2\*3\\");
        let control = &by_class(&[tool("a\nb", ToolClass::Read)])[0];
        let expected = [r"Read (Low)", r"`a\nb` is denied: the name has a control character, so no entry can name it."];
        assert_eq!((&control.rule, control.comments.as_slice()), (&None, &expected.map(str::to_owned)[..]));
        assert!(by_class(&[tool(&"*".repeat(256), ToolClass::Read)])[0].rule.is_some());
        let long = &by_class(&[tool(&"*".repeat(257), ToolClass::Read)])[0];
        assert!(long.rule.is_none() && long.comments[1].ends_with("the name has more than 512 bytes, so no entry can name it."));
    }

    #[test]
    fn who_goes_on_as_before_fits_and_who_goes_twice_as_fast_does_not() {
        let day = observed(86_400, vec![seen("w", 412, [9, 61, 398]), seen("once", 1, [1, 1, 1])]);
        let tools = [tool("w", ToolClass::Write), tool("once", ToolClass::Read), tool("unused", ToolClass::Read)];
        let (entries, uncalled) = by_use(&tools, "s", &day);
        assert_eq!((entries.len(), uncalled), (2, 1));
        assert_eq!(limits(&entries[0]), [(17, "minute"), (121, "hour"), (795, "day")]);
        assert_eq!(limits(&entries[1]), [(1, "minute"), (1, "hour"), (1, "day")]);
        assert_eq!(entries[0].comments, ["Write (Medium)", "412 calls; at most 9 in a minute, 61 in an hour, 398 in a day"]);
    }

    #[test]
    fn windows_that_were_not_seen_whole_have_no_limit_but_a_minute_always_has() {
        for (seconds, expected) in [(5, 1), (3599, 1), (3600, 2), (86_399, 2), (86_400, 3)] {
            let (entries, _) = by_use(&[tool("w", ToolClass::Write)], "s", &observed(seconds, vec![seen("w", 9, [9, 9, 9])]));
            assert_eq!(limits(&entries[0]).len(), expected, "{seconds}");
        }
        let (entries, _) = by_use(&[], "s", &observed(1, vec![seen("w", u64::MAX, [u64::MAX; 3])]));
        assert_eq!(limits(&entries[0]), [(1_000_000_000_000, "minute")]);
    }

    #[test]
    fn a_pod_that_was_observed_for_less_gives_no_limit_for_more() {
        let mut seen_by_two = observed(86_400, vec![seen("w", 9, [9; 3]), seen("r", 9, [9; 3])]);
        let young = ObservedResponse { seconds: 100, tools: vec![seen("w", 90, [90; 3])], ..ObservedResponse::default() };
        seen_by_two.add(&young);
        let (entries, _) = by_use(&[tool("w", ToolClass::Write), tool("r", ToolClass::Read)], "s", &seen_by_two);
        assert_eq!(limits(&entries[0]), [(179, "minute")]);
        assert_eq!(entries[0].comments[1], "99 calls; at most 90 in a minute of one pod");
        assert_eq!(limits(&entries[1]), [(17, "minute"), (17, "hour"), (17, "day")]);
    }

    #[test]
    fn what_was_called_is_allowed_and_what_is_doubtful_says_so() {
        let calls = vec![seen("gone", 1, [1; 3]), seen("drop", 1, [1; 3]), seen("run", 1, [1; 3]), seen("get", 1, [1; 3])];
        let tools = [tool("get", ToolClass::Read), tool("run", ToolClass::Execute), tool("drop", ToolClass::Destructive)];
        let (entries, uncalled) = by_use(&tools, "s", &observed(90, calls));
        let names: Vec<&str> = entries.iter().map(|entry| entry.rule.as_ref().unwrap().0.as_str()).collect();
        assert_eq!((names, uncalled), (vec!["get", "run", "drop", "gone"], 0));
        let doubtful: Vec<bool> = entries.iter().map(|entry| entry.comments[0].ends_with("look at it")).collect();
        assert_eq!(doubtful, [false, true, true, true]);
        assert_eq!(by_use(&tools, "other", &observed(90, Vec::new())), (Vec::new(), 3));
    }
}
