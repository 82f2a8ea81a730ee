//! The words that say what a tool does. To teach the classifier a word, add it to the fitting group.

use std::{collections::HashMap, sync::LazyLock};

use toolweir_crds::ToolClass::{self, Destructive, Execute, Financial, Read, Write};

/// How a word is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A verb wherever it stands.
    Verb,
    /// A verb or a noun: a verb where a name or a sentence begins (`update_list`), and at a name's end (`issue_update`).
    Firm,
    /// A noun rather than a verb (`post`, `issue`): what else is said of the tool counts more.
    Loose,
    /// A verb that says little (`generate`, `manage`): what else is said of the tool counts more.
    Mild,
    /// A verb that says nothing without its object (`take`).
    Light,
    /// A noun for something that a tool gives (`server_info`).
    Noun,
}

/// What the lexicon knows of a word.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The class for which it speaks.
    pub class: ToolClass,
    /// How it is used.
    pub usage: Use,
}

const GROUPS: &[(ToolClass, Use, &str)] = &[
    (
        Read,
        Use::Verb,
        "get list read fetch retrieve find show describe view lookup inspect explore browse analyze analyse explain compare
        validate verify summarize summarise estimate calculate compute peek scrape extract parse detect discover identify
        diagnose enumerate introspect measure lint grep glob ls stat cat decode encode wait echo ask suggest recommend rerank
        classify predict forecast translate tell return display locate give obtain gather aggregate investigate examine
        determine observe visualize correlate infer hget hgetall hexists hkeys hvals hlen lrange llen lindex smembers sismember
        scard zrange zscore zcard xrange xlen mget ttl dbsize whois geocode",
    ),
    (Read, Use::Firm, "search query count check scan crawl preview tail diff ping filter think research"),
    (Read, Use::Loose, "trace map answer access reason"),
    (Read, Use::Mild, "provide convert render pick look browse present rank assess audit help see reveal head"),
    (
        Read,
        Use::Noun,
        "info information status details detail stats statistics version versions summary history docs documentation doc schema
        overview metrics metadata logs tree size health whoami capabilities usage balance screenshot snapshot findings top
        permalink breakdown replies lookup analysis insights reference examples guide outliers locks",
    ),
    (
        Write,
        Use::Verb,
        "create add insert upsert write edit modify patch put send publish unpublish upload push append prepend assign unassign
        reassign attach detach enable disable activate deactivate rename move copy duplicate clone import install deploy
        redeploy
        provision configure register unregister deregister subscribe unsubscribe invite merge approve reject close reopen open
        restart start stop pause resume unpause suspend scale grant share unshare follow unfollow unstar pin unpin unlock hide
        unhide archive unarchive restore rollback revert promote demote synchronize reply respond react acknowledge
        unacknowledge snooze silence mark toggle switch change adjust increment decrement incr decr save stage unstage
        stash checkout login logout authenticate authorize connect disconnect reconnect click press fill hover drag scroll
        navigate pop dequeue tap swipe resize maximize minimize reorder annotate notify reserve retry rebuild replay redirect dispatch
        enqueue
        requeue block unblock mute unmute join leave apply bind unbind associate disassociate transition replace rotate renew
        extend allocate trust migrate compress gzip zip unzip encrypt decrypt ingest populate bootstrap init initialize
        initialise
        setup complete finish finalize launch spawn boot reboot turn override escalate claim dismiss accept decline confirm
        customize refactor compose remember memorize hset lpush rpush sadd zadd xadd setex mset persist cordon uncordon
        taint scaffold delegate sanitize upgrade downgrade tweet unlike retweet undo redo undelete consolidate commence
        reindex vacuum rewrite intake enrol enroll instantiate materialize ship swap resolve rebase relocate rearrange",
    ),
    (Write, Use::Firm, "update set commit fork refresh sync backup transfer autofix fix"),
    (
        Write,
        Use::Loose,
        "post issue comment message email mail tag label flag branch star like lock pull request schedule book order record
        type select focus alert release link index draft page vote rate build train sign note upload event bookmark stream log
        report review print watch compact
        whitelist allowlist blacklist denylist cache seed watermark forward store",
    ),
    (
        Write,
        Use::Mild,
        "manage handle generate produce prepare make download export optimize administer control use go back load format
        transform sort dump simulate",
    ),
    (Write, Use::Light, "take perform conduct do carry place capture empty submit exchange collect process initiate"),
    (Execute, Use::Verb, "execute exec eval evaluate invoke trigger rerun psql ssh"),
    (Execute, Use::Firm, "run call"),
    (Execute, Use::Loose, "test shell bash command script terminal"),
    (
        Destructive,
        Use::Verb,
        "delete remove drop truncate purge destroy erase wipe kill terminate uninstall cancel revoke overwrite clear flush prune
        discard abort evict unlink rm rmdir del hdel lrem srem zrem xdel flushdb flushall lpop rpop spop getdel deprovision
        decommission shred expunge nuke drain shutdown invalidate kick obliterate",
    ),
    (Destructive, Use::Firm, "reset trash ban"),
    (Destructive, Use::Loose, "expire"),
    (Financial, Use::Verb, "pay withdraw buy sell disburse remit donate reimburse prepay"),
    (Financial, Use::Firm, "refund purchase deposit"),
    (Financial, Use::Loose, "charge trade stake"),
];

/// A verb with one of these words behind it speaks for another class: `run_report` reads, `open_issue` opens one.
const WITH_OBJECT: &[(&str, &str, ToolClass)] = &[
    ("run execute", "report search audit analysis lookup aggregation assessment comparison", Read),
    (
        "perform conduct do make carry",
        "search searches scan query queries lookup analysis research audit comparison check assessment inspection retrieval
        aggregation crawl testing evaluation calculation reasoning",
        Read,
    ),
    ("perform do make carry", "request requests call calls command commands script action actions", Execute),
    ("perform do make carry", "change changes update updates edit edits modification write writes", Write),
    ("perform do make carry", "deletion removal cleanup", Destructive),
    ("make process", "payment purchase transfer payout refund", Financial),
    ("take capture", "screenshot screenshots snapshot snapshots picture photo screen accessibility", Read),
    ("open", "node nodes document documents record records", Read),
    ("load", "skill skills guide instructions content contents", Read),
    (
        "resolve",
        "library host hostname ip dns domain package module symbol provider path name names id ids identifier alias",
        Read,
    ),
    ("test", "connection connections connectivity reachability regex pattern", Read),
    (
        "generate",
        "report reports summary summaries analysis overview breakdown comparison recommendations suggestions insights",
        Read,
    ),
    ("transfer", "money funds fund balance payment payments amount cash crypto eth btc usdc usdt sol tokens", Financial),
    ("send", "transaction transactions", Financial),
    ("swap exchange", "token tokens coin coins currency", Financial),
    ("empty", "trash bin folder recycle cart bucket queue cache", Destructive),
    ("check", "out in", Write),
    ("convert", "draft discussion issue task lead", Write),
    ("extract unpack", "archive zip tar", Write),
    ("submit initiate process collect place", "form review report job task data request payment", Write),
    ("push", "force", Destructive),
];

/// With these verbs, what follows in [`MONEY`] is paid.
const PAYING: &str =
    "create collect make send submit process initiate capture confirm authorize execute issue approve schedule place add start";
const MONEY: &str = "payment payments refund refunds payout payouts charge charges withdrawal transfer purchase order
        orders trade \
    trades donation funds money";

/// Verbs for which a query is no query that runs: `explain_query`.
const NOT_RUN: &str = "explain plan validate lint format parse estimate translate optimize convert generate suggest
        verify check";

static ENTRIES: LazyLock<HashMap<&'static str, Entry>> = LazyLock::new(|| {
    let mut entries = HashMap::new();
    for &(class, usage, words) in GROUPS {
        for word in words.split_whitespace() {
            // The first group that names a word counts.
            entries.entry(word).or_insert(Entry { class, usage });
        }
    }
    entries
});

/// The form of a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `delete`
    Base,
    /// `deletes`
    Third,
    /// `deleting`
    Gerund,
}

/// Whether a list of words has this one.
pub fn among(words: &str, word: &str) -> bool {
    words.split_whitespace().any(|known| known == word)
}

/// What is known of a word as it stands.
pub fn entry(word: &str) -> Option<Entry> {
    ENTRIES.get(word).copied()
}

/// The forms of which this word may be one, the likeliest first.
pub fn stems(word: &str) -> Vec<(String, Form)> {
    let mut stems = vec![(word.to_owned(), Form::Base)];
    if let Some(stem) = word.strip_suffix("ies") {
        stems.push((format!("{stem}y"), Form::Third));
    }
    if let Some(stem) = word.strip_suffix('s') {
        stems.push((stem.to_owned(), Form::Third));
        stems.extend(stem.strip_suffix('e').map(|stem| (stem.to_owned(), Form::Third)));
    }
    if let Some(stem) = word.strip_suffix("ing") {
        stems.push((stem.to_owned(), Form::Gerund));
        stems.push((format!("{stem}e"), Form::Gerund));
        let mut letters = stem.chars().rev();
        if let (Some(last), Some(same)) = (letters.next(), letters.next())
            && last == same
        {
            stems.extend(stem.strip_suffix(last).map(|stem| (stem.to_owned(), Form::Gerund)));
        }
    }
    stems
}

/// What is known of a word in any form, with its base form.
pub fn inflected(word: &str) -> Option<(String, Form, Entry)> {
    stems(word).into_iter().find_map(|(stem, form)| entry(&stem).map(|entry| (stem, form, entry)))
}

/// The class of a verb with the words behind it, if these make it another than the verb's own.
pub fn with_object<'a>(verb: &str, behind: &(impl Iterator<Item = &'a str> + Clone)) -> Option<ToolClass> {
    if among(PAYING, verb) && behind.clone().any(|word| among(MONEY, word)) {
        return Some(Financial);
    }
    let fits = |objects: &str| behind.clone().any(|word| among(objects, word));
    WITH_OBJECT.iter().find(|(verbs, objects, _)| among(verbs, verb) && fits(objects)).map(|(_, _, class)| *class)
}

/// Whether a verb looks at a query or a script, and does not run it.
pub fn only_looks(verb: &str) -> bool {
    among(NOT_RUN, verb)
}
