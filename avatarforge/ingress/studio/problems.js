// The server's sentences are English. In other languages they are made here, by a problem's code and with its values;
// what is not known stays as the server says it.

import { has, language, number, t } from "./i18n.js";

const FORMATS = "JPEG, PNG, WebP, GIF, HEIC, AVIF, TIFF ou BMP";
const AGAIN = "Tente de novo em {retryAfter} s."; // left out where it is not known when
const PLACE = /\{(\w+)\}/g; // of a value
const SENTENCES = {
  pt: {
    internal_error: "O servidor encontrou um erro inesperado, que foi registrado.",
    unauthenticated: "É preciso uma chave de API válida.",
    forbidden: "Esta chave não dá acesso a isto.",
    foreign_site: "O serviço só responde às suas próprias páginas, não às de {site}.",
    link_invalid: "O link venceu ou foi alterado.",
    links_unavailable: "Este servidor não assina links: falta o ajuste access.link_secrets.",
    invalid_request: "{field} é “{value}”, mas deve ser {expected}.",
    invalid_customer_id: "“{value}” não serve como identificador de cliente.",
    photo_missing: "Falta a foto.",
    photo_empty: `A foto está vazia. Envie uma imagem ${FORMATS}.`,
    photo_too_large: "A foto passa do limite de {limit} bytes.",
    photo_not_an_image: `{filename} não é uma imagem. Envie uma imagem ${FORMATS}.`,
    photo_unsupported: "{filename} não pode ser usado: {kind} não é aceito.",
    photo_damaged: "{filename} não pôde ser lido até o fim. Envie-o de novo, inteiro.",
    photo_dimensions:
      "A foto mede {width} × {height} pixels, mas cada lado deve ter ao menos {minSide}, e o todo no máximo {maxPixels}.",
    malformed_upload: "O envio chegou incompleto. Envie de novo.",
    not_found: "Aqui não há nada.",
    customer_not_found: "Não há cliente {customerId}.",
    job_not_found: "O cliente {customerId} não tem o trabalho {jobId}.",
    image_not_found: "O trabalho {jobId} não tem esta imagem.",
    illegal_transition: "O estado do trabalho não permite isto: {current}.",
    job_not_finished: "O trabalho {jobId} ainda não terminou. Espere, ou cancele-o antes.",
    idempotency_key_reused: "Este envio já foi feito com outros dados, no trabalho {jobId}.",
    idempotency_key_in_flight: `O mesmo envio está a caminho. ${AGAIN}`,
    limit_reached: `O limite de {limit} foi alcançado. ${AGAIN}`,
    rate_limited: `Esta chave pediu mais de {limit} vezes por segundo. ${AGAIN}`,
    backlog_full: `O serviço já tem {limit} imagens por fazer. ${AGAIN}`,
    customer_backlog_full: `Você já espera por {limit} imagens. ${AGAIN}`,
    too_many_uploads: `O serviço já recebe {limit} fotos ao mesmo tempo. ${AGAIN}`,
    too_many_crops: `O serviço já procura {limit} rostos ao mesmo tempo. ${AGAIN}`,
    too_many_calls: `O serviço já lê {limit} chamadas ao mesmo tempo. ${AGAIN}`,
    too_many_streams: `O serviço já tem {limit} páginas abertas. ${AGAIN}`,
    too_many_streams_of_customer: `Você já tem {limit} páginas abertas. Feche uma. ${AGAIN}`,
    unavailable: `O serviço não está disponível. ${AGAIN}`,
    database_unavailable: `O banco de dados não está disponível. ${AGAIN}`,
    storage_unavailable: `O armazenamento não está disponível. ${AGAIN}`,
    storage_full: "O armazenamento está cheio, e a foto não foi guardada. Tente mais tarde.",
    tracker_unavailable: `O coordenador de trabalhos não está disponível. ${AGAIN}`,
    model_missing: "Nenhum modelo está em serviço agora.",
    model_unusable: "O modelo não pode ser usado ({detail})",
    image_not_finite: "O modelo não fez imagem nenhuma. Tente com menos orientação.",
    unsafe_content: "O filtro do modelo reteve a imagem. Tente outra descrição.",
    generation_failed: "O modelo não conseguiu fazer esta imagem ({detail})",
    signing_failed: "O avatar não pôde ser assinado ({detail})",
    remote_unavailable: "O outro servidor não está disponível ({detail})",
    remote_failed: "O outro servidor falhou ({detail})",
    remote_refused: "O outro servidor recusou o pedido ({detail})",
    device_failed: "O dispositivo falhou ({detail})",
    deadline_exceeded: "O tempo dado ao trabalho acabou.",
    device_lost: "O dispositivo falhou ({detail})",
    original_missing: "A foto deste trabalho não existe mais.",
    worker_stopping: "Quem fazia o trabalho foi desligado.",
    worker_lost: "O trabalho se perdeu várias vezes com quem o fazia.",
    lease_expired: "Quem fazia o trabalho deixou de responder.",
  },
};
// In place of those above, of a job's own error: it has no values.
const OF_JOBS = {
  pt: {
    invalid_request: "O pedido não serve para o modelo ({detail})",
    photo_damaged: "A foto não pôde ser lida até o fim. Envie-a de novo, inteira.",
  },
};
const FIELDS = {
  pt: {
    prompt: "A descrição",
    negativePrompt: "A descrição do que evitar",
    style: "O estilo",
    variants: "O número de imagens",
    strength: "A força",
    imageGuidance: "A fidelidade à foto",
    guidance: "A orientação",
    steps: "O número de passos",
    seed: "A semente",
    sampler: "O amostrador",
    format: "O formato",
    width: "A largura",
    height: "A altura",
    callbackUrl: "O endereço de retorno",
    priority: "A prioridade",
    timeoutSeconds: "O prazo",
    expiresSeconds: "A validade do link",
  },
};
// How a value that is refused should be.
const EXPECTED = {
  pt: [
    [/^a whole number from (\S+) to (\S+)$/, "um número inteiro de $1 a $2"],
    [/^a number from (\S+) to (\S+)$/, "um número de $1 a $2"],
    [/^a number above (\S+) and up to (\S+)$/, "um número acima de $1, até $2"],
    [/^a multiple of (\S+) from (\S+) to (\S+)(?: with the model (.+))?$/, "um múltiplo de $1, de $2 a $3"],
    [/^at most (\S+) characters long \(it has (\S+)\)$/, "um texto de até $1 letras (tem $2)"],
    [/^at least (\S+) with (\S+) steps, or no step is left to take$/, "no mínimo $1 com $2 passos, ou não sobra passo"],
    [/^one of (?:those of the model \S+ )?(.+)$/, "um destes: $1"],
  ],
};

// Of a problem document, or of a job's error. What needs a value that is not told stays as the server says it.
export function sentenceOf({ message, detail = message, ...values }) {
  const { code, field } = values;
  const known = (message ? OF_JOBS[language()]?.[code] : undefined) ?? SENTENCES[language()]?.[code];
  if (!known) return detail;
  const current = has(`state_${values.current}`) ? t(`state_${values.current}`) : values.current;
  const expected = values.expected && translateExpected(values.expected);
  const facts = { ...values, field: FIELDS[language()]?.[field] ?? field, current, expected, detail };
  const sentence = facts.retryAfter === undefined ? known.replace(AGAIN, "").trim() : known;
  const isKnown = [...sentence.matchAll(PLACE)].every(([, name]) => (facts[name] ?? "") !== "");
  return isKnown ? sentence.replace(PLACE, (_, name) => worded(facts[name])) : detail;
}

const worded = (fact) => (typeof fact === "number" ? number(fact) : fact);

function translateExpected(text) {
  const [pattern, words] = EXPECTED[language()].find(([pattern]) => pattern.test(text)) ?? [];
  return pattern && text.replace(pattern, words);
}
