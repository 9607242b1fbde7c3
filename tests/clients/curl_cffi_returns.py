"""curl_cffi's libcurl, several times with one handle and a new connection each time: what it learnt the first time,
sessions and alternative services, is what it may use the next."""

import argparse
import io

from report import need, say

with need("curl_cffi"):
    from curl_cffi import Curl, CurlHttpVersion, CurlInfo, CurlOpt

VERSIONS = {CurlHttpVersion.V2_0: "2", CurlHttpVersion.V3: "3"}
# Of curl/curl.h, which curl_cffi has no names for.
TEXT = 0
CURLALTSVC_H1, CURLALTSVC_H2, CURLALTSVC_H3 = 1 << 3, 1 << 4, 1 << 5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--http3", action="store_true", help="nothing but HTTP/3; else what curl thinks best")
    parser.add_argument("--alt-svc", help="the file in which it keeps what it learnt")
    options = parser.parse_args()
    curl = Curl(cacert=options.ca)
    answers = []
    for _ in range(options.times):
        body, trace = io.BytesIO(), []
        curl.setopt(CurlOpt.URL, f"https://{options.host}:{options.port}{options.path}")
        curl.setopt(CurlOpt.RESOLVE, [f"{options.host}:{options.port}:127.0.0.1".encode()])
        curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V3ONLY if options.http3 else CurlHttpVersion.NONE)
        # It prefers what it knows of, also where that takes long.
        curl.setopt(CurlOpt.HAPPY_EYEBALLS_TIMEOUT_MS, 60_000)
        curl.setopt(CurlOpt.FORBID_REUSE, 1)
        curl.setopt(CurlOpt.TIMEOUT_MS, 60_000)
        if options.alt_svc:
            curl.setopt(CurlOpt.ALTSVC_CTRL, CURLALTSVC_H1 | CURLALTSVC_H2 | CURLALTSVC_H3)
            curl.setopt(CurlOpt.ALTSVC, options.alt_svc.encode())
        curl.setopt(CurlOpt.VERBOSE, 1)
        curl.setopt(CurlOpt.DEBUGFUNCTION, lambda kind, data: trace.append(data) if kind == TEXT else None)
        curl.setopt(CurlOpt.WRITEDATA, body)
        curl.perform(clear_headers=False)
        answers.append(
            {
                "status": curl.getinfo(CurlInfo.RESPONSE_CODE),
                "version": VERSIONS.get(curl.getinfo(CurlInfo.HTTP_VERSION), "another"),
                "connects": curl.getinfo(CurlInfo.NUM_CONNECTS),
                "text": body.getvalue().decode(),
                "trace": b"".join(trace).decode(errors="replace"),
            }
        )
    curl.close()
    say(answers=answers)


if __name__ == "__main__":
    main()
