"""curl_cffi, which is a recent libcurl with HTTP/3 by ngtcp2 and nghttp3: nothing but HTTP/3."""

import argparse
import pathlib

from report import need, say, sha256

with need("curl_cffi"):
    from curl_cffi import CurlHttpVersion, CurlOpt, requests


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["GET", "HEAD", "POST"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--file")
    parser.add_argument("--impersonate")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cert", help="a certificate to show, with --key")
    parser.add_argument("--key")
    options = parser.parse_args()
    body = pathlib.Path(options.file).read_bytes() if options.file else None
    resolve = [f"{options.host}:{options.port}:127.0.0.1"]
    told = []
    with requests.Session(
        verify=options.ca,
        cert=(options.cert, options.key) if options.cert else None,
        http_version=CurlHttpVersion.V3ONLY,
        impersonate=options.impersonate,
        curl_options={CurlOpt.RESOLVE: resolve},
        timeout=60,
    ) as session:
        for _ in range(options.repeat):
            url = f"https://{options.host}:{options.port}{options.path}"
            answer = session.request(options.method, url, data=body)
            told.append(
                {
                    "status": answer.status_code,
                    "version": int(answer.http_version),
                    "fields": {name.lower(): value for name, value in answer.headers.items()},
                    "length": len(answer.content),
                    "sha256": sha256(answer.content),
                    "text": answer.text if len(answer.content) < 1000 else "",
                }
            )
    say(answers=told, version=int(CurlHttpVersion.V3))


if __name__ == "__main__":
    main()
