"The few endpoints of a model hub that a download needs, over folders of this machine; it can break off, lie, refuse and stay silent"
import hashlib, http.server, json, threading, time
from pathlib import Path

def large(path): return path.suffix in ('.safetensors', '.bin')
def sha256(data): return hashlib.sha256(data).hexdigest()
def git_sha(data): return hashlib.sha1(f'blob {len(data)}\0'.encode()+data).hexdigest()

class Hub(http.server.BaseHTTPRequestHandler):
    "`models`: hub id → folder. `limit`: bytes of a large file that are sent in all. `lie`: one byte of large files differs"
    protocol_version = 'HTTP/1.1'
    models, limit, lie, gated, token, pause, sizes, asked, sent, commit = {}, None, False, False, None, 0, {}, [], 0, 'c'*40
    def log_message(self, *args): pass
    def reply(self, code, data=b'', **headers):
        self.send_response(code)
        for k,v in {'Content-Length':len(data), 'X-Repo-Commit':self.commit}.items(): self.send_header(k, str(headers.get(k.replace('-','_'), v)))
        for k,v in headers.items():
            if k not in ('Content_Length','X_Repo_Commit'): self.send_header(k.replace('_','-'), str(v))
        self.end_headers()
        if self.command=='GET': self.wfile.write(data)

    def name_of(self, words): return '/'.join(words[:2]), words[2:]
    def may(self): return not self.gated or self.headers.get('Authorization')==f'Bearer {self.token}'
    def info(self, name):
        files = [p for p in sorted(self.models[name].rglob('*')) if p.is_file()]
        row = lambda p, d: dict(rfilename=str(p.relative_to(self.models[name])), size=self.sizes.get(p.name, len(d)), blobId=git_sha(d)) | (dict(lfs=dict(size=self.sizes.get(p.name, len(d)), sha256=sha256(d), pointerSize=130)) if large(p) else {})
        return dict(id=name, modelId=name, sha=self.commit, private=False, gated='manual' if self.gated else False, tags=['license:mit'], downloads=0, likes=0, siblings=[row(p, p.read_bytes()) for p in files])

    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        words = self.path.split('?')[0].strip('/').split('/')
        if words[:2]==['api','models']:
            name,rest = self.name_of(words[2:])
            if name not in self.models: return self.reply(404, b'{"error":"Repository not found"}', X_Error_Code='RepoNotFound')
            if rest==['auth-check']: return self.reply(200, b'{}') if self.may() else self.reply(403, b'{"error":"gated"}', X_Error_Code='GatedRepo')
            return self.reply(200, json.dumps(self.info(name)).encode(), Content_Type='application/json')
        name,rest = self.name_of(words)
        if name not in self.models or rest[:1]!=['resolve']: return self.reply(404, b'', X_Error_Code='EntryNotFound')
        if not self.may(): return self.reply(403, b'', X_Error_Code='GatedRepo')
        self.file(self.models[name].joinpath(*rest[2:]))

    def file(self, path):
        cls, data = type(self), path.read_bytes()
        tag = f'"{sha256(data) if large(path) else git_sha(data)}"'
        more = dict(ETag=tag, Accept_Ranges='bytes') | (dict(X_Linked_Etag=tag, X_Linked_Size=len(data)) if large(path) else {})
        if self.command=='HEAD': return self.reply(200, b'', Content_Length=len(data), **more)
        rng = self.headers.get('Range')
        start = int(rng[6:].split('-')[0]) if rng else 0
        cls.asked.append((path.name, start))
        if cls.lie and large(path): data = data[:-1]+bytes([data[-1]^1])
        if rng: more['Content_Range'] = f'bytes {start}-{len(data)-1}/{len(data)}'
        body = data[start:]
        if not large(path) or cls.limit is None and not cls.pause: return self.reply(206 if rng else 200, body, **more)
        body = body if cls.limit is None else body[:max(0, cls.limit-cls.sent)]
        self.send_response(206 if rng else 200)
        for k,v in (dict(Content_Length=len(data)-start)|more).items(): self.send_header(k.replace('_','-'), str(v))
        self.end_headers()
        for i in range(0, len(body), 1<<16):
            self.wfile.write(body[i:i+(1<<16)]); self.wfile.flush()
            cls.sent += len(body[i:i+(1<<16)])
            time.sleep(cls.pause)
        self.close_connection = True # where there was a limit, that is in the middle

def serve(models):
    "A hub of its own in a thread: (handler class, server)"
    cls = type('ThisHub', (Hub,), dict(models={k:Path(v) for k,v in models.items()}, asked=[], sizes={}))
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), cls)
    srv.daemon_threads = True
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    return cls, srv
