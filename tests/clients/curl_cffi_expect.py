"""A POST that waits for 100 (Continue). curl_cffi's requests never send `Expect`, its libcurl does."""

import argparse
import io
import pathlib

from report import need, say

with need("curl_cffi"):
    from curl_cffi import Curl, CurlHttpVersion, CurlInfo, CurlOpt

VERSIONS = {CurlHttpVersion.V2_0: "2", CurlHttpVersion.V3: "3"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--file", required=True)
    parser.add_argument("--http2", action="store_true")
    parser.add_argument("--patience", type=int, default=50_000, help="ms until it goes on without a 100")
    options = parser.parse_args()
    body = pathlib.Path(options.file).read_bytes()
    heads, answer = io.BytesIO(), io.BytesIO()
    curl = Curl(cacert=options.ca)
    curl.setopt(CurlOpt.URL, f"https://{options.host}:{options.port}{options.path}")
    curl.setopt(CurlOpt.RESOLVE, [f"{options.host}:{options.port}:127.0.0.1".encode()])
    curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V2TLS if options.http2 else CurlHttpVersion.V3ONLY)
    curl.setopt(CurlOpt.HTTPHEADER, [b"Expect: 100-continue"])
    curl.setopt(CurlOpt.EXPECT_100_TIMEOUT_MS, options.patience)
    curl.setopt(CurlOpt.TIMEOUT_MS, 60_000)
    curl.setopt(CurlOpt.POST, 1)
    curl.setopt(CurlOpt.POSTFIELDSIZE_LARGE, len(body))
    curl.setopt(CurlOpt.POSTFIELDS, body)
    curl.setopt(CurlOpt.HEADERDATA, heads)
    curl.setopt(CurlOpt.WRITEDATA, answer)
    curl.perform()
    say(
        status=curl.getinfo(CurlInfo.RESPONSE_CODE),
        version=VERSIONS.get(curl.getinfo(CurlInfo.HTTP_VERSION), "another"),
        uploaded=int(curl.getinfo(CurlInfo.SIZE_UPLOAD_T)),
        text=answer.getvalue().decode(),
        heads=heads.getvalue().decode(),
    )
    curl.close()


if __name__ == "__main__":
    main()
