//! The uses of an expression in a policy.

/// The use of an expression in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressionUse {
    /// A condition, which must be true.
    Condition,
    /// A condition under which a person is asked: where it is true, and where it fails.
    Approval,
    /// What that person is shown.
    Shown,
    /// A key, which may be null too.
    Key,
    /// A cost, which must be a number.
    Cost,
}
