//! The REST API. One layer authorizes; one function turns errors into problem details; handlers are
//! thin. Described by OpenAPI (`/v1/openapi.json`) from the same source.

mod apps;
pub mod auth;
mod builds;
mod canary;
mod certs;
pub mod deploy;
mod error;
mod exec;
mod external;
mod files;
mod gateway;
mod isolate;
mod logs;
mod registries;
mod runs;
mod server;
mod snapshots;
mod source;
mod tokens;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Control;

pub use apps::current_spec;
pub use auth::token;
pub use error::ApiError;
use error::Result;

#[derive(OpenApi)]
#[openapi(info(
    title = "Hutong",
    description = "Runs many small apps on one server, each in its own sandbox."
))]
struct Described;

fn routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::with_openapi(Described::openapi())
        .routes(routes!(apps::list))
        .routes(routes!(apps::show, apps::remove))
        .routes(routes!(apps::start))
        .routes(routes!(apps::stop))
        .routes(routes!(apps::restart))
        .routes(routes!(apps::scale))
        .routes(routes!(apps::env, apps::change_env))
        .routes(routes!(deploy::has_tree, deploy::upload))
        .routes(routes!(deploy::take_image))
        .routes(routes!(deploy::deploy))
        .routes(routes!(deploy::watch))
        .routes(routes!(builds::cancel))
        .routes(routes!(builds::drop_cache))
        .routes(routes!(builds::secrets, builds::change_secrets))
        .routes(routes!(deploy::releases))
        .routes(routes!(deploy::rollback))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::remove))
        .routes(routes!(files::app_file))
        .routes(routes!(files::tree_files))
        .routes(routes!(canary::promote))
        .routes(routes!(canary::abort))
        .routes(routes!(isolate::isolate))
        .routes(routes!(isolate::release))
        .routes(routes!(isolate::evidence))
        .routes(routes!(runs::list, runs::start))
        .routes(routes!(runs::show, runs::stop))
        .routes(routes!(logs::logs))
        .routes(routes!(exec::exec))
        .routes(routes!(server::version))
        .routes(routes!(server::system))
        .routes(routes!(server::doctor))
        .routes(routes!(server::upgrade))
        .routes(routes!(server::leaks))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(source::show, source::set, source::forget))
        .routes(routes!(source::previews))
        .routes(routes!(registries::list))
        .routes(routes!(registries::set, registries::forget))
        .routes(routes!(gateway::status))
        .routes(routes!(external::list))
        .routes(routes!(gateway::bans, gateway::ban))
        .routes(routes!(gateway::lift))
        .routes(routes!(certs::list))
        .routes(routes!(certs::add, certs::remove))
        .routes(routes!(certs::renew))
        .routes(routes!(certs::authority))
}

/// The API's description, as JSON.
pub fn openapi() -> String {
    let (_, described) = routes().split_for_parts();
    described.to_pretty_json().unwrap_or_default()
}

/// Serves until the process ends. `socket` is the listening socket that the warden made.
pub async fn serve(
    control: Arc<Control>,
    socket: OwnedFd,
    is_tcp: bool,
) -> std::result::Result<(), String> {
    let (router, described) = routes().split_for_parts();
    let text = described.to_pretty_json().unwrap_or_default();
    let router: Router = router
        .route(
            "/v1/openapi.json",
            axum::routing::get(move || async move {
                ([("content-type", "application/json")], text).into_response()
            }),
        )
        .fallback(|| async { ApiError::not_found("there is no such thing in the API") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(405, "this cannot be done with that method")
        })
        .layer(axum::middleware::from_fn_with_state(
            control.clone(),
            auth::authorize,
        ))
        .with_state(control);
    let failed = |error: std::io::Error| error.to_string();
    if is_tcp {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let service = router.into_make_service_with_connect_info::<auth::Peer>();
        axum::serve(listener, service).await.map_err(failed)
    } else {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let service = router.into_make_service_with_connect_info::<auth::Peer>();
        axum::serve(listener, service).await.map_err(failed)
    }
}
