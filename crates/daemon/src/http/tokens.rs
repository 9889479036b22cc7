//! Tokens of apps: for `git push` and the registry. A token is shown once, when it is made.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use hutong_api::{NewToken, Problem, Token, TokenMade};
use hutong_core::name::AppName;

use super::auth::digest_of_token;
use super::{ApiError, Result};
use crate::Control;
use crate::store::{self, MAX_TOKENS, Scope};

/// What it begins with, for people and for programs that look for secrets in text.
const PREFIX: &str = "htg_";

fn check(name: &str) -> Result<()> {
    AppName::new(name).map(drop).map_err(ApiError::bad)
}

/// An app's tokens: never what they are.
#[utoipa::path(get, path = "/v1/apps/{app}/tokens", responses((status = 200, body = Vec<Token>)))]
pub async fn list(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Token>>> {
    check(&name)?;
    let tokens = control.store.tokens(&name)?;
    Ok(Json(tokens.into_iter().map(to_wire).collect()))
}

/// Makes a token for an app, which need not be there yet: a push may make it.
#[utoipa::path(post, path = "/v1/apps/{app}/tokens", request_body = NewToken, responses((status = 200, body = TokenMade), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn create(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(new): Json<NewToken>,
) -> Result<Json<TokenMade>> {
    check(&name)?;
    let scope = Scope::parse(&new.scope)
        .ok_or_else(|| ApiError::bad("the scope of a token is push or pull"))?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if !(1..=40).contains(&new.name.len()) || !new.name.bytes().all(plain) {
        return Err(ApiError::bad(
            "the name of a token has 1 to 40 letters, digits, `-`, `_` or `.`",
        ));
    }
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| ApiError::new(500, error.to_string()))?;
    let secret = format!("{PREFIX}{}", hutong_core::tree::hex(&random));
    let hash = digest_of_token(&secret);
    let id = control.store.add_token(&name, &new.name, scope, &hash)?;
    let id = id.ok_or_else(|| {
        ApiError::conflict(format!("{name} has {MAX_TOKENS} tokens already"))
            .hint(format!("`hutong token list {name}` lists them"))
    })?;
    Ok(Json(TokenMade { id, secret }))
}

/// Revokes a token: it is good for nothing from now on.
#[utoipa::path(delete, path = "/v1/apps/{app}/tokens/{id}", responses((status = 200), (status = 404, body = Problem)))]
pub async fn revoke(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
) -> Result<Json<()>> {
    if control.store.drop_token(&name, id)? {
        return Ok(Json(()));
    }
    Err(ApiError::not_found(format!("{name} has no token {id}"))
        .hint(format!("`hutong token list {name}` lists them")))
}

fn to_wire(token: store::Token) -> Token {
    Token {
        id: token.id,
        name: token.name,
        scope: token.scope.word().to_owned(),
        created_at: token.created_ms,
    }
}
