"""Creates, gets, lists, changes, watches and deletes an integration, and reads what the server says of a mistake."""

import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).parents[2] / "proto" / "proto"
TIMEOUT = 30  # seconds; creating waits for an executor, which checks the configuration


def generate(folder):
    """Makes the Python classes of the control API and puts them on the path."""
    files = ["tbmq/control/v1/integration.proto"]
    # The tools bring the well-known types.
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    )
    if code != 0:
        sys.exit(f"protoc ended with {code}")
    sys.path.insert(0, folder)


def explain(error):
    """Prints the reason and the fields of an error."""
    print("refused", error.code().name, end="")
    status = rpc_status.from_call(error)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else []:
        if detail.Unpack(info):
            print(f" {info.reason}", end="")
        detail.Unpack(request)
    print()
    for violation in request.field_violations:
        print(f"  {violation.field}: {violation.description}")


def main(server):
    from tbmq.control.v1 import integration_pb2 as api
    from tbmq.control.v1 import integration_pb2_grpc as services

    document = {
        "topicFilters": ["sensors/#"],
        "metadata": {"site": "north"},
        "clientConfiguration": {
            "restEndpointUrl": "http://127.0.0.1:9/",
            "requestMethod": "POST",
            "maxInMemoryBufferSizeInKb": 256,
        },
    }
    with grpc.insecure_channel(server) as channel:
        integrations = services.IntegrationServiceStub(channel)

        created = integrations.CreateIntegration(
            api.CreateIntegrationRequest(
                integration=api.Integration(
                    display_name="python-example",
                    type="HTTP",
                    enabled=False,
                    configuration_json=json.dumps(document),
                    labels={"example": "python"},
                )
            ),
            timeout=TIMEOUT,
        )
        print("created", created.display_name, api.IntegrationStatus.Phase.Name(created.status.phase))

        got = integrations.GetIntegration(api.GetIntegrationRequest(name=created.name), timeout=TIMEOUT)
        print("got", got.display_name)

        filter = 'type = "HTTP" AND labels.example = "python"'
        page = integrations.ListIntegrations(api.ListIntegrationsRequest(filter=filter), timeout=TIMEOUT)
        print("listed", *(listed.display_name for listed in page.integrations))

        # The etag makes sure that nobody else has changed it since.
        integrations.UpdateIntegration(
            api.UpdateIntegrationRequest(
                integration=api.Integration(name=created.name, etag=got.etag, description="changed"),
                update_mask=field_mask_pb2.FieldMask(paths=["description"]),
            ),
            timeout=TIMEOUT,
        )

        # From a revision on: what has happened since comes first.
        watch = integrations.WatchIntegrations(
            api.WatchIntegrationsRequest(name=created.name, after_revision=created.revision), timeout=TIMEOUT
        )
        for change in watch:
            if change.type == api.WatchIntegrationsResponse.TYPE_BOOKMARK:
                continue  # says only how far the watch has come
            print("watched", api.WatchIntegrationsResponse.Type.Name(change.type), change.integration.description)
            break
        watch.cancel()

        try:
            wrong = api.Integration(type="HTTP", configuration_json='{"topicFilters": ["a/#/b"], "clientConfiguration": {}}')
            integrations.CreateIntegration(api.CreateIntegrationRequest(integration=wrong), timeout=TIMEOUT)
        except grpc.RpcError as error:
            explain(error)

        integrations.DeleteIntegration(api.DeleteIntegrationRequest(name=created.name), timeout=TIMEOUT)
        print("deleted", created.display_name)
        try:
            integrations.GetIntegration(api.GetIntegrationRequest(name=created.name), timeout=TIMEOUT)
        except grpc.RpcError as error:
            explain(error)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        generate(folder)
        main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9090")
