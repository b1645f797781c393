"""What the columns of a class list mean: Canvas's and Moodle's exports in many languages, or one's own CSV.

Moodle translates the headers of its participants, grades and grading worksheets. A header that is not known here is
recognised by what stands below it: e-mail addresses, "Participant 123", names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from labsupport.grading.intake.spelling import plain_key

# field -> headers. English and own; es, pt, fr, de, it, ru, zh, ja, ar; pl, tr, nl, id
_HEADERS = {
    "student": ("student",),
    "name": (
        "name", "full name", "fullname", "nombre completo", "nombre completo del usuario", "nome completo",
        "nom complet", "vollständiger name", "cognome nome", "полное имя", "фио", "имя / фамилия", "имя/фамилия",
        "全名", "姓名", "氏名", "フルネーム", "الاسم الكامل", "الاسم", "imię i nazwisko", "pełna nazwa",
        "tam ad", "tam adı",
        "adı soyadı", "volledige naam", "nama lengkap",
    ),
    "first_name": (
        "first name", "firstname", "given name", "nombre", "nome", "nome próprio", "prénom", "vorname", "имя", "名",
        "名字", "الاسم الأول", "imię", "ad", "adı", "voornaam", "nama depan",
    ),
    "last_name": (
        "last name", "lastname", "surname", "family name", "apellido", "apellidos", "apellido(s)", "sobrenome",
        "apelido", "nom", "nom de famille", "nachname", "cognome", "фамилия", "姓", "姓氏", "الاسم الأخير",
        "اسم العائلة", "الشهرة", "nazwisko", "soyad", "soyadı", "achternaam", "nama belakang",
    ),
    "email": (
        "email", "email address", "e-mail", "mail", "dirección de correo", "dirección email", "correo",
        "dirección de correo electrónico", "correo electrónico", "endereço de email", "endereço de e-mail",
        "adresse de courriel", "adresse e-mail", "courriel", "e-mail-adresse", "mailadresse", "indirizzo email",
        "адрес электронной почты", "электронная почта", "почта", "电子邮件地址", "email地址", "邮箱", "电子邮箱",
        "邮箱地址", "メールアドレス", "عنوان البريد الإلكتروني", "البريد الإلكتروني",
        "adres e-mail",
        "adres email", "e-posta", "e-posta adresi", "e-mailadres", "alamat email",
    ),
    "login": (
        "username", "login", "sis login id", "nombre de usuario", "usuario", "nome de usuário", "nome de utilizador",
        "usuário", "nom d'utilisateur", "nom d’utilisateur", "anmeldename", "nutzername", "benutzername", "nome utente",
        "логин", "имя пользователя", "用户名", "账号", "ユーザ名", "ユーザー名", "اسم المستخدم", "nazwa użytkownika",
        "kullanıcı adı", "gebruikersnaam", "nama pengguna",
    ),
    "sis_id": (
        "id number", "sis id", "sis user id", "número de id", "número de identificación", "número de identificação",
        "numéro d'identification", "numéro d’identification", "id-nummer", "matrikelnummer", "codice identificativo",
        "numero id", "matricola", "индивидуальный номер", "идентификационный номер", "id号", "id号码", "学号", "编号",
        "idナンバー", "id番号", "学籍番号", "رقم التعريف", "رقم الهوية", "numer id", "numer identyfikacyjny",
        "id numarası", "kimlik numarası", "id-nummer", "nomor id", "nomor induk", "student number", "sid",
    ),
    "moodle_id": (
        "identifier", "identificador", "identifiant", "identifikation", "identifikator", "teilnehmer/in",
        "identificativo", "идентификатор", "标识符", "标识", "識別子", "識別", "المعرف", "المعرّف", "identyfikator",
        "tanımlayıcı", "identificatie", "pengenal",
    ),
    "canvas_id": ("id", "canvas id"),
    "section": ("section",),
}  # fmt: skip
_FIELDS = {plain_key(header): field for field, headers in _HEADERS.items() for header in headers}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_PARTICIPANT = re.compile(r"[^\W\d_][^\d]*?\s?\d+")  # "Participant 123", in any language
_NAME = re.compile(r"[^\W\d_][^\d@_]{0,80}")


def fields_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[int, str]:
    """Column -> field, for the columns that say something of a person. The header's words come first."""
    found: dict[int, str] = {}
    for i, cell in enumerate(header):
        field = _FIELDS.get(plain_key(cell))
        values = [value for row in rows if len(row) > i and (value := row[i].strip())]
        if i == 0 and field in (None, "canvas_id") and _mostly(_PARTICIPANT, values) and _one_word(values):
            field = "moodle_id"  # Moodle's worksheets begin with it
        elif field == "moodle_id" and not _mostly(re.compile(r"\D*\d+"), values):
            field = "login" if "login" not in found.values() else None  # French calls both "Identifiant"
        if field is None and "email" not in found.values() and _mostly(_EMAIL, values):
            field = "email"
        if field is not None and (field not in found.values()):
            found[i] = field
    if not {"student", "name", "first_name", "last_name"} & set(found.values()):
        found |= _names(header, rows, found)
    return found


def participant_number(text: str) -> str:
    """The number at the end of an Identifier: "Participant 12345" -> "12345"."""
    found = re.search(r"(\d+)\s*$", text)
    return str(int(found[1])) if found else ""


def _names(header: Sequence[str], rows: Sequence[Sequence[str]], known: dict[int, str]) -> dict[int, str]:
    """The first columns that hold names, by content, if e-mail addresses or user names show that people are meant.

    A worksheet of blind marking has none of them, and its status is no name.
    """
    if not {"email", "login", "sis_id"} & set(known.values()):
        return {}
    columns = []
    for i in range(len(header)):
        values = [value for row in rows if len(row) > i and (value := row[i].strip())]
        if i not in known and _mostly(_NAME, values) and 2 * len(set(values)) > len(values):
            columns.append(i)
    if not columns:
        return {}
    spaced = sum(" " in row[columns[0]].strip() for row in rows if len(row) > columns[0])
    if len(columns) == 1 or columns[1] != columns[0] + 1 or 2 * spaced > len(rows):
        return {columns[0]: "name"}
    return {columns[0]: "first_name", columns[1]: "last_name"}


def _mostly(pattern: re.Pattern[str], values: Sequence[str]) -> bool:
    return bool(values) and sum(pattern.fullmatch(value) is not None for value in values) > 0.8 * len(values)


def _one_word(values: Sequence[str]) -> bool:
    """Whether all are the same word with different numbers."""
    return len({re.sub(r"\s*\d+$", "", value) for value in values}) == 1 and len(set(values)) == len(values)
