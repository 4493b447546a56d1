//! Texts that lists are searched for in columns.

use sea_orm::{
    ExprTrait as _,
    sea_query::{Expr, Func, IntoColumnRef, LikeExpr},
};

/// Whether a column holds this text, in upper or lower case.
pub(super) fn contains(column: impl IntoColumnRef, text: &str) -> Expr {
    Expr::expr(Func::lower(Expr::col(column))).like(containing(&text.to_lowercase()))
}

/// What holds this text as it stands: nothing in it stands for something else.
pub(super) fn containing(text: &str) -> LikeExpr {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    LikeExpr::new(pattern).escape('\\')
}
