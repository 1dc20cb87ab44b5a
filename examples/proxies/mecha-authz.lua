-- The action lua.mecha_authz: asks mecha-keys about a request. For haproxy.cfg beside it, which says what is asked and
-- what becomes of the answer. HAProxy 2.6 or later, with nothing but the HTTP client of its own.
--
-- From the environment, where haproxy.cfg puts them: the address of /v1/authz, and a file with the gateway credential,
-- which is read once, while HAProxy is still root. Without a file no credential is sent: for AUTHZ_LISTEN.

local url = assert(os.getenv("MECHA_KEYS_AUTHZ"), "MECHA_KEYS_AUTHZ is not set")
local credential_file = os.getenv("MECHA_KEYS_CREDENTIAL_FILE")
-- HAProxy tries up to three times more.
local TIMEOUT_MS = 2000
local IDENTITY = { "x-mecha-id", "x-mecha-handle", "x-mecha-crew", "x-mecha-org", "x-mecha-scopes", "x-mecha-key-id" }
-- What a client may be told. Anything else, no answer at all included, is left to haproxy.cfg, which lets nothing pass.
local REFUSALS = { [401] = true, [403] = true, [503] = true }
local TOLD = { "www-authenticate", "retry-after", "content-type", "cache-control", "x-request-id" }

local credential
if credential_file then
  local file = assert(io.open(credential_file))
  credential = "Bearer " .. assert(file:read("l"), "the file of the gateway credential is empty")
  file:close()
end

local function value(answer, name)
  local values = answer.headers and answer.headers[name]
  return values and values[0]
end

-- All values of a header, which HAProxy counts from 0.
local function values(headers, name)
  local list, i = {}, 0
  while headers[name] and headers[name][i] do
    list[#list + 1] = headers[name][i]
    i = i + 1
  end
  return list
end

core.register_action("mecha_authz", { "http-req" }, function(txn)
  local asked = txn.http:req_get_headers()
  local headers = { ["x-mecha-key"] = values(asked, "x-mecha-key"), ["authorization"] = values(asked, "authorization") }
  if credential then headers["x-gateway-authorization"] = { credential } end
  local demand = txn:get_var("txn.mecha_demand")
  local answer = core.httpclient():get { url = demand and url .. "?" .. demand or url, headers = headers, timeout = TIMEOUT_MS }

  if answer.status == 200 then
    for _, name in ipairs(IDENTITY) do
      txn:set_var("txn." .. name:gsub("-", "_"), value(answer, name) or "")
    end
    txn:set_var("txn.mecha_passes", true)
  elseif REFUSALS[answer.status] then
    local reply = txn:reply { status = answer.status, body = answer.body }
    for _, name in ipairs(TOLD) do
      if value(answer, name) then reply:add_header(name, value(answer, name)) end
    end
    txn:done(reply)
  end
end)
