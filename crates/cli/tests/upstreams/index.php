<?php
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if ($path === '/cookies') {
    setcookie('a', '1');
    setcookie('b', '2');
    header('Location: /elsewhere', true, 303);
    exit;
}
if ($path === '/large') {
    for ($i = 0; $i < 200; $i++) {
        echo str_repeat('x', 10000);
        flush();
    }
    exit;
}
if ($path === '/plain') {
    header('Content-Length: 5');
    echo 'plain';
    exit;
}
header('Content-Type: application/json');
echo json_encode([
    'script' => $_SERVER['SCRIPT_NAME'],
    'file' => $_SERVER['SCRIPT_FILENAME'],
    'info' => $_SERVER['PATH_INFO'] ?? '',
    'uri' => $_SERVER['REQUEST_URI'],
    'query' => $_GET,
    'form' => $_POST,
    'length' => strlen(file_get_contents('php://input')),
    'method' => $_SERVER['REQUEST_METHOD'],
    'https' => $_SERVER['HTTPS'] ?? '',
    'host' => $_SERVER['HTTP_HOST'],
    'address' => $_SERVER['REMOTE_ADDR'],
    'proxy' => $_SERVER['HTTP_PROXY'] ?? '',
]);
